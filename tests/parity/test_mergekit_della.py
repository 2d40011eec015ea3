"""DELLA by mergekit 0.1.5 and by us.

Masks come from another generator (mergekit's depend on the order of tensors), so that element by
element only the probabilities and density 1 can be compared; otherwise it is the distribution.
"""

from __future__ import annotations

import pytest
import torch
from both import assert_alike, by_mergekit, by_us, small_llamas
from merges import tensors
from torch.testing import assert_close

from mergepipe.magprune import keep_probabilities

EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize("shape", [(37,), (1, 9), (12, 20), (50, 2)], ids=str)
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.3, 0.29), (0.9, 0.05), (0.4, 0)])
def test_the_keep_probabilities(monkeypatch, shape, density, epsilon):
    from mergekit.sparsify import della_magprune

    drawn = []
    monkeypatch.setattr(torch, "bernoulli", lambda q: drawn.append(q) or torch.ones_like(q))
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    della_magprune(delta, density, epsilon)
    ours = keep_probabilities(delta, density, epsilon).float()
    assert_close(ours, drawn[0].reshape(shape), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return small_llamas(tmp_path_factory.mktemp("models"), layers=5, hidden=16, vocab=40)


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize("normalize", [True, False])
def test_della_with_density_one_and_zero(models, tmp_path, method, normalize):
    rows = (("a", 0.6, 1.0), ("b", 0.3, 1.0), ("c", 0.5, 0.0))
    each = {label: {"weight": weight, "density": density} for label, weight, density in rows}
    elect = {"elect": "mergekit"} if method == "della" else {}
    shared = {"normalize": normalize, "lambda": 0.8}
    theirs = by_mergekit(models, tmp_path, method, each, base_model="base", parameters=shared)
    assert_alike(
        by_us(models, tmp_path, method, each, base="base", rescale="l1", **elect, **shared), theirs
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Models with an embedding of 5000 rows of 64."""
    return small_llamas(tmp_path_factory.mktemp("large"), layers=1, hidden=64, vocab=5000)


def update_and_ranks(merged, models):
    base, expert = (tensors(models[label])[EMBEDDING] for label in ("base", "a"))
    ranks = (expert - base).abs().argsort(dim=-1).argsort(dim=-1)
    return merged[EMBEDDING] - base, expert - base, ranks


def shares_by_rank(merged, models):
    """How many elements of each rank within a row changed, from the smallest to the largest."""
    update, _, ranks = update_and_ranks(merged, models)
    changed = (update != 0).double()
    return torch.stack([changed[ranks == rank].mean() for rank in range(64)])


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.4, 0.35)])
def test_elements_of_each_rank_stay_as_often(large, tmp_path, density, epsilon):
    each = {"a": {"weight": 1.0, "density": density, "epsilon": epsilon}}
    theirs = by_mergekit(large, tmp_path, "della_linear", each, base_model="base")
    ours = by_us(large, tmp_path, "della_linear", each, base="base")
    expected = torch.linspace(density - epsilon, density + epsilon, 64, dtype=torch.float64)
    for merged in (ours, theirs):
        # The standard deviation of a share of 5000 is 0.007 at most.
        assert_close(shares_by_rank(merged, large), expected, rtol=0, atol=5 * 0.007)


def test_rescale_l1_restores_the_l1_norm_in_both(large, tmp_path):
    """Our default divides each survivor by its own probability, as the paper does; mergekit's
    `rescale: true` restores each tensor's L1 norm, which is our `rescale: l1`.
    """
    each = {"a": {"weight": 1.0, "density": 0.3}}
    theirs = by_mergekit(large, tmp_path, "della_linear", each, base_model="base")
    ours = by_us(large, tmp_path, "della_linear", each, base="base", rescale="l1")
    for merged in (ours, theirs):
        update, delta, _ = update_and_ranks(merged, large)
        assert_close(update.abs().sum(), delta.abs().sum(), rtol=1e-5, atol=0)


def fits_of_halves(merged, models):
    """What the smaller and the larger half of each row's update are multiplied by, on average."""
    update, delta, ranks = update_and_ranks(merged, models)
    return [
        ((update * delta)[half].sum() / (delta**2)[half].sum()).item()
        for half in (ranks < 32, ranks >= 32)
    ]


def test_by_default_the_large_are_not_favoured_in_expectation(large, tmp_path):
    """Dividing by their own probability makes survivors of every rank right on average, where
    mergekit's single factor makes large elements too large and small ones too small.
    """
    each = {"a": {"weight": 1.0, "density": 0.5, "epsilon": 0.4}}
    theirs = by_mergekit(large, tmp_path, "della_linear", each, base_model="base")
    ours = by_us(large, tmp_path, "della_linear", each, base="base")
    fits = [*fits_of_halves(ours, large), *fits_of_halves(theirs, large)]
    assert fits[:2] == pytest.approx([1, 1], abs=0.03)
    assert fits[2] < 0.7
    assert fits[3] > 1.05


def moments(merged, models):
    """Share of elements that changed; mean magnitude, mean square, and fit to the dense update."""
    update, delta, _ = update_and_ranks(merged, models)
    scale = delta.abs().mean()
    means = (update.abs() / scale).mean(), (update**2).mean(), (update * delta).mean()
    return [(update.abs() > 1e-7).float().mean().item(), *(mean.item() for mean in means)]


@pytest.mark.parametrize("normalize", [True, False])
def test_della_draws_masks_of_the_same_distribution(large, tmp_path, normalize):
    each = {"a": {"weight": 0.7, "density": 0.3}, "b": {"weight": 0.4, "density": 0.6}}
    theirs = by_mergekit(
        large, tmp_path, "della", each, base_model="base", parameters={"normalize": normalize}
    )
    shared = {"rescale": "l1", "elect": "mergekit", "normalize": normalize}
    ours = by_us(large, tmp_path, "della", each, base="base", **shared)
    assert moments(ours, large) == pytest.approx(moments(theirs, large), rel=0.05)
