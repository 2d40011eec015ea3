"""Breadcrumbs by mergekit 0.1.5 and by us, tensor by tensor, on tiny fp32 Llamas."""

from __future__ import annotations

import pytest
import torch
from both import assert_exact, by_mergekit, by_us, small_llamas
from checkpoints import llama
from merges import tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return small_llamas(tmp_path_factory.mktemp("models"), layers=5, hidden=16, vocab=40)


ROWS = [
    [(1.0, 0.5, 0.01), (1.0, 0.5, 0.01), (1.0, 0.5, 0.01)],
    [(0.5, 0.2, 0.1), (1.0, 0.8, 0.0), (0.8, 1.0, 0.3)],
    [(0.5, 0.01, 0.5), (-1.0, 0.3, 0.25), (0.75, 0.75, 0.001)],
    [(0.4, 0.0, 0.05), (0.6, 0.9, 0.5), (0.1, 0.6, 1.0)],
]
every_row = pytest.mark.parametrize("row", ROWS, ids=str)
every_normalize = pytest.mark.parametrize("normalize", [True, False])


def dealt(row):
    fields = ("weight", "density", "gamma")
    return {k: dict(zip(fields, values, strict=True)) for k, values in zip("abc", row, strict=True)}


@every_normalize
@every_row
def test_breadcrumbs(models, tmp_path, row, normalize):
    each, shared = dealt(row), {"normalize": normalize, "lambda": 0.7}
    theirs = by_mergekit(
        models, tmp_path, "breadcrumbs", each, base_model="base", parameters=shared
    )
    assert_exact(by_us(models, tmp_path, "breadcrumbs", each, base="base", **shared), theirs)


@every_normalize
@every_row
def test_breadcrumbs_ties(models, tmp_path, row, normalize):
    each, shared = dealt(row), {"normalize": normalize, "lambda": 1.3}
    theirs = by_mergekit(
        models, tmp_path, "breadcrumbs_ties", each, base_model="base", parameters=shared
    )
    ours = by_us(
        models, tmp_path, "breadcrumbs_ties", each, base="base", elect="mergekit", **shared
    )
    assert_exact(ours, theirs)


def test_a_fraction_is_a_decimal_so_029_of_200_drops_58_and_not_57(tmp_path):
    """mergekit computes int(0.29 * 200) in binary, which is 57; we drop what the recipe says."""
    folders = {
        k: llama(tmp_path / k, seed=i, layers=1, hidden=200, vocab=8, dtype="F32")
        for i, k in enumerate(("base", "a"))
    }
    each = {"a": {"weight": 1.0, "density": 0.5, "gamma": 0.29}}
    theirs = by_mergekit(folders, tmp_path, "breadcrumbs", each, base_model="base")
    ours = by_us(folders, tmp_path, "breadcrumbs", each, base="base")
    base, expert = (tensors(folders[label])["model.norm.weight"] for label in ("base", "a"))
    order = (expert - base).abs().argsort(descending=True)
    changed = [(x["model.norm.weight"] != base)[order] for x in (ours, theirs)]
    assert [int(x.nonzero()[0]) for x in changed] == [58, 57]
    assert [int(x.sum()) for x in changed] == [100, 100]


def test_scope_row_masks_every_row_and_mergekit_only_the_tensor(models, tmp_path):
    """The authors' code masks along the last dimension; mergekit's share is of the tensor."""
    each = {"a": {"weight": 1.0, "density": 0.25, "gamma": 0.125}}
    name, base = "lm_head.weight", tensors(models["base"])
    theirs = by_mergekit(models, tmp_path, "breadcrumbs", each, base_model="base")
    ours = by_us(models, tmp_path, "breadcrumbs", each, base="base", scope="row")
    per_row = [(x[name] != base[name]).sum(-1) for x in (ours, theirs)]
    assert set(per_row[0].tolist()) == {4}
    assert len(set(per_row[1].tolist())) > 1
    assert torch.equal(per_row[0].sum(), per_row[1].sum())
