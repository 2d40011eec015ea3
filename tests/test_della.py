"""DELLA: the probabilities that elements stay, the masks drawn from them, and the rescaling."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from mergepipe.kernels.random import random_words, stream_key
from mergepipe.magprune import keep_probabilities
from mergepipe.method import apply

every_method = pytest.mark.parametrize("name", ["della", "della_linear"])


def pruned(values, density=0.5, epsilon=0.2, **shared):
    """One task vector, pruned."""
    vector = torch.as_tensor(values)
    each = {"a": {"density": density, "epsilon": epsilon}}
    return apply("della_linear", torch.zeros_like(vector), {"a": vector}, each, **shared)


survivors = partial(pruned, rescale="none")


def draw(*shape, seed=0):
    """Numbers without a 0, so that what is dropped can be seen."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.sign() * (values.abs() + 0.1)


# Probabilities.


def test_the_probability_grows_with_the_rank_in_the_row():
    found = keep_probabilities(torch.tensor([[3.0, -1, 2], [0, -20, 10]]), 0.5, 0.2)
    expected = torch.tensor([[0.7, 0.3, 0.5], [0.3, 0.7, 0.5]], dtype=torch.float64)
    assert_close(found, expected, rtol=0, atol=1e-15)


def test_of_equal_magnitudes_the_first_has_the_lower_rank():
    found = keep_probabilities(torch.tensor([[2.0, -2, 1, -1, 2]]), 0.5, 0.2)
    expected = torch.tensor([[0.5, 0.6, 0.3, 0.4, 0.7]], dtype=torch.float64)
    assert_close(found, expected, rtol=0, atol=1e-15)


def test_an_element_alone_in_its_row_stays_with_the_density():
    assert keep_probabilities(torch.tensor([[1.0], [5.0]]), 0.5, 0.2).tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_density_zero_and_one_leave_nothing_to_chance(density):
    values = draw(30, 40)
    assert (keep_probabilities(values, density, 0.15) == density).all()
    assert torch.equal(pruned(values, density, rescale="inverse"), values * density)


def test_ranks_of_a_fused_tensor_run_along_its_last_dimension():
    values = draw(3, 4, 5)
    flat = keep_probabilities(values.reshape(12, 5), 0.6, 0.3)
    assert torch.equal(keep_probabilities(values, 0.6, 0.3), flat.reshape(3, 4, 5))
    assert torch.equal(pruned(values).reshape(12, 5), pruned(values.reshape(12, 5)))


@every_method
@pytest.mark.parametrize(
    ("density", "epsilon"), [(0.9, 0.15), (0.1, 0.1), (0.75, 0.25), (1e-9, 0.5)]
)
def test_probabilities_outside_zero_and_one_are_refused(name, density, epsilon):
    each = {"a": {"density": density, "epsilon": epsilon}}
    with pytest.raises(ValueError, match=f"density {density:g} and epsilon {epsilon:g} give"):
        apply(name, torch.zeros(2), {"a": torch.ones(2)}, each)


@every_method
@pytest.mark.parametrize("each", [{"density": 1.5}, {"density": -0.1}, {"epsilon": -0.1}], ids=str)
def test_parameters_out_of_range_are_refused(name, each):
    with pytest.raises(ValidationError):
        apply(name, torch.zeros(2), {"a": torch.ones(2)}, {"a": each})


# Masks.


def test_an_element_stays_when_its_random_word_is_below_its_probability():
    values = draw(40, 25)
    words = random_words(stream_key(7, "a", "here"), 0, 1000).astype(int)
    limits = (keep_probabilities(values, 0.4, 0.3).flatten() * 2**32).tolist()
    expected = [word < int(limit) for word, limit in zip(words.tolist(), limits, strict=True)]
    kept = survivors(values, 0.4, 0.3, seed=7, tensor="here") != 0
    assert kept.flatten().tolist() == expected


def test_each_rank_stays_as_often_as_its_probability_says():
    values = draw(20_000, 8)
    ranks = values.abs().argsort(dim=-1).argsort(dim=-1)
    kept = survivors(values, 0.4, 0.35) != 0
    shares = torch.tensor([kept[ranks == r].double().mean() for r in range(8)])
    # The standard deviation of a share is 0.0035 at most.
    expected = torch.linspace(0.05, 0.75, 8, dtype=torch.float64)
    assert_close(shares, expected, rtol=0, atol=5 * 0.0035)


def test_the_mean_over_seeds_approaches_the_dense_task_vector():
    values = draw(16, 32)
    mean = torch.stack([pruned(values, 0.5, 0.3, seed=seed) for seed in range(400)]).mean(0)
    # A survivor is 1/q ≤ 5; the mean of 400 has a standard deviation of 0.1 at most.
    assert ((mean / values) - 1).abs().max() < 5 * 0.1


@pytest.mark.parametrize("rescale", ["inverse", "none"])
@pytest.mark.parametrize("block", [1, 25, 60, 999])
def test_blocks_do_not_change_the_result(rescale, block):
    values = draw(40, 25)
    assert torch.equal(
        pruned(values, rescale=rescale, block=block), pruned(values, rescale=rescale)
    )


def test_a_row_does_not_depend_on_the_other_rows():
    values, other = draw(6, 50), draw(6, 50, seed=1)
    other[2] = values[2]
    assert torch.equal(pruned(other)[2], pruned(values)[2])


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_only_the_order_of_magnitudes_matters_to_the_mask(scale):
    values = draw(6, 50)
    assert torch.equal(pruned(values * scale), pruned(values) * scale)
    assert torch.equal(pruned(-values), -pruned(values))


def test_a_vector_is_one_row():
    values = draw(200)
    assert torch.equal(pruned(values), pruned(values[None])[0])
    assert not torch.equal(pruned(values), pruned(values.reshape(20, 10)).flatten())


def test_one_column_is_dropped_with_the_density_whatever_epsilon_is():
    values = draw(10_000, 1)
    wide, narrow = (survivors(values, 0.3, epsilon) for epsilon in (0.25, 0.0))
    assert torch.equal(wide, narrow)
    assert abs((wide != 0).double().mean() - 0.3) < 5 * 0.0046


def test_a_mask_depends_on_seed_label_and_name():
    values, zeros = draw(64, 64), torch.zeros(64, 64)
    alone = pruned(values)
    each = {"a": {"epsilon": 0.2}, "b": {"weight": 0.0}}
    both = apply("della_linear", zeros, {"b": draw(64, 64, seed=1), "a": values}, each)
    assert torch.equal(both, alone)
    assert not torch.equal(pruned(values, seed=1), alone)
    assert not torch.equal(pruned(values, tensor="another"), alone)
    other = apply("della_linear", zeros, {"c": values}, {"c": {"epsilon": 0.2}})
    assert not torch.equal(other, alone)


# Rescaling and merging.


def test_survivors_are_divided_by_their_own_probability():
    values = draw(30, 20)
    q = keep_probabilities(values, 0.5, 0.2).float()
    kept = survivors(values)
    assert set((kept / values).flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(pruned(values), kept / q)


def test_rescale_l1_restores_the_norm_of_the_tensor():
    values = draw(30, 20)
    kept, restored = survivors(values), pruned(values, rescale="l1")
    ratio = values.double().abs().sum() / kept.double().abs().sum()
    assert_close(restored, (kept * ratio).float())
    assert_close(restored.abs().sum(), values.abs().sum())


def test_rescale_l1_leaves_tiny_norms_alone():
    values = draw(30, 20) * 1e-12
    assert torch.equal(pruned(values, rescale="l1"), survivors(values))


def test_della_elects_signs_among_survivors_and_divides_by_their_weights():
    a, b = draw(50, 20), draw(50, 20, seed=1)
    each = {"a": {"weight": 0.7}, "b": {"weight": 0.4, "density": 0.6}}
    merged = apply("della", torch.zeros(50, 20), {"a": a, "b": b}, each)
    x, y = (
        apply("della_linear", torch.zeros(50, 20), {label: m}, {label: each[label]})
        for label, m in (("a", a), ("b", b))
    )
    positive = (x + y) > 0
    mine, its = ((v != 0) & ((v > 0) == positive) for v in (x, y))
    divisor = 0.7 * mine + 0.4 * its
    assert_close(merged, (x * mine + y * its) / torch.where(divisor == 0, 1.0, divisor))


@pytest.mark.parametrize(("elect", "expected"), [("sum", 0.0), ("mergekit", 1.0)])
def test_a_sum_of_zero_elects_as_told(elect, expected):
    each = {label: {"density": 1.0} for label in "ab"}
    ones = torch.ones(2, 2)
    merged = apply("della", torch.zeros(2, 2), {"a": ones, "b": -ones}, each, elect=elect)
    assert (merged == expected).all()


def test_della_linear_adds_up_and_scales():
    each = {k: {"density": 1.0, "weight": w} for k, w in (("a", 0.5), ("b", 2.0))}
    models = {"a": torch.tensor([3.0, 5.0]), "b": torch.tensor([2.0, 0.0])}
    merge = partial(apply, "della_linear", torch.ones(2), models, each)
    assert merge(lambda_=0.5).tolist() == [2.5, 1.0]
    assert_close(merge(normalize=True), torch.tensor([1 + 3 / 2.5, 1.0]))
