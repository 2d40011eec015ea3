"""DARE by mergekit 0.1.5 and by us.

Masks come from another generator (mergekit's depend on the order of tensors), so that only
density 1 can be compared element by element; otherwise it is the distribution.
"""

from __future__ import annotations

import pytest
import torch
from both import assert_alike, by_mergekit, by_us, small_llamas
from merges import tensors
from torch.testing import assert_close


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return small_llamas(tmp_path_factory.mktemp("models"), layers=5, hidden=16, vocab=40)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("normalize", [True, False])
def test_dare_with_density_one(models, tmp_path, method, normalize):
    each = {label: {"weight": weight, "density": 1.0} for label, weight in (("a", 0.6), ("b", 0.3))}
    elect = {"elect": "mergekit"} if method == "dare_ties" else {}
    shared = {"normalize": normalize, "lambda": 0.8}
    theirs = by_mergekit(models, tmp_path, method, each, base_model="base", parameters=shared)
    assert_alike(
        by_us(models, tmp_path, method, each, base="base", rescale="l1", **elect, **shared), theirs
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Models with an embedding of 320,000 elements."""
    return small_llamas(tmp_path_factory.mktemp("large"), layers=1, hidden=64, vocab=5000)


def moments(merged, base, dense):
    """Share of elements that changed; mean magnitude, mean square, and fit to the dense update."""
    name = "model.embed_tokens.weight"
    update, full = (merged[name] - base[name]).double(), (dense[name] - base[name]).double()
    changed = (update.abs() > 1e-7).double().mean()
    return torch.stack(
        [
            changed,
            update.abs().mean() / full.abs().mean(),
            (update**2).mean() / (full**2).mean(),
            (update * full).mean() / (full**2).mean(),
        ]
    )


@pytest.mark.parametrize(
    ("rescale", "theirs_rescale"), [("l1", True), ("inverse", True), ("none", False)]
)
def test_dare_linear_draws_masks_of_the_same_distribution(large, tmp_path, rescale, theirs_rescale):
    each = {"a": {"weight": 1.0, "density": 0.3}}
    theirs = by_mergekit(
        large,
        tmp_path,
        "dare_linear",
        each,
        base_model="base",
        parameters={"rescale": theirs_rescale},
    )
    ours = by_us(large, tmp_path, "dare_linear", each, base="base", rescale=rescale)
    base, dense = tensors(large["base"]), tensors(large["a"])
    factor = 1 / 0.3 if theirs_rescale else 1.0
    expected = torch.tensor([0.3, 0.3 * factor, 0.3 * factor**2, 0.3 * factor], dtype=torch.float64)
    assert_close(moments(ours, base, dense), expected, rtol=0.03, atol=0)
    assert_close(moments(theirs, base, dense), expected, rtol=0.03, atol=0)


def test_rescale_l1_restores_the_l1_norm_in_both_and_inverse_only_on_average(large, tmp_path):
    """Our default divides by the density, as the paper does; mergekit's `rescale: true` restores
    each tensor's L1 norm, which is our `rescale: l1`.
    """
    each = {"a": {"weight": 1.0, "density": 0.3}}
    base, dense = tensors(large["base"]), tensors(large["a"])
    merged = [
        by_mergekit(large, tmp_path, "dare_linear", each, base_model="base"),
        by_us(large, tmp_path, "dare_linear", each, base="base", rescale="l1"),
    ]
    for one in merged:
        assert_close(moments(one, base, dense)[1].item(), 1.0, rtol=1e-5, atol=0)


def test_dare_ties_draws_masks_of_the_same_distribution(large, tmp_path):
    each = {"a": {"weight": 0.7, "density": 0.3}, "b": {"weight": 0.4, "density": 0.6}}
    theirs = by_mergekit(large, tmp_path, "dare_ties", each, base_model="base")
    ours = by_us(
        large,
        tmp_path,
        "dare_ties",
        each,
        base="base",
        rescale="l1",
        elect="mergekit",
        normalize=False,
    )
    base, dense = tensors(large["base"]), tensors(large["a"])
    assert_close(moments(ours, base, dense), moments(theirs, base, dense), rtol=0.05, atol=0)
