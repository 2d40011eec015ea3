"""Task vectors: trim, elect, combine, and dropping at random."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch.testing import assert_close

from mergepipe.delta import NO_WEIGHT, add_update, agreeing, combine
from mergepipe.method import Block, Target, add_statistics, apply, run_survey
from mergepipe.trim import keep_count, keep_largest, survey_largest

T, F = True, False
quick = settings(deadline=None, max_examples=150)
# All finite fp32, and a few values that tie with each other in magnitude.
tied = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, 1.0000001])
floats = tied | st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = arrays(np.float32, array_shapes(max_dims=1, max_side=60), elements=floats)


def blocks_of(tensors, size):
    """Blocks of a model with base 0 whose deltas are `tensors`: {name: array}."""
    return [
        Block(Target(name), at, torch.zeros(len(part)), (torch.from_numpy(part),), ("a",), (), None)
        for name, values in tensors.items()
        for at in range(0, max(len(values), 1), size)
        for part in [values[at : at + size]]
    ]


def kept_by_survey(tensors, count, size, **options):
    """Which elements stay, in order of name and index, after a survey over blocks of `size`."""
    blocks = blocks_of(tensors, size)
    total = sum(map(len, tensors.values()))
    survey = survey_largest({"a": total}, {"a": count}, **options)
    trims = run_survey(survey, lambda measure: add_statistics(map(measure, blocks)))
    ones = [
        keep_mask_of(block, trims) for block in sorted(blocks, key=lambda b: (b.tensor, b.start))
    ]
    return np.concatenate(ones)


def keep_mask_of(block, trims):
    (kept,) = keep_largest(block, trims)
    assert bool(((kept == 0) | (kept == block.models[0])).all())
    return kept.numpy() != 0


def largest_by_sorting(values, count):
    keep = np.zeros(len(values), bool)
    keep[np.argsort(-np.abs(values), kind="stable")[:count]] = True
    return keep & (values != 0)


# Trim.


@quick
@given(values=vectors, data=st.data(), size=st.integers(1, 70))
def test_a_trim_keeps_the_first_k_of_a_stable_sort_by_magnitude(values, data, size):
    count = data.draw(st.integers(0, len(values)))
    expected = largest_by_sorting(values, count)
    assert kept_by_survey({"t": values}, count, size).tolist() == expected.tolist()


@quick
@given(parts=st.lists(vectors, min_size=1, max_size=5), data=st.data(), size=st.integers(1, 70))
def test_a_trim_over_tensors_orders_ties_by_name_then_index(parts, data, size):
    tensors = {f"t{i}": part for i, part in enumerate(parts)}
    values = np.concatenate(parts)
    count = data.draw(st.integers(0, len(values)))
    backwards = dict(reversed(tensors.items()))
    expected = largest_by_sorting(values, count)
    assert kept_by_survey(backwards, count, size).tolist() == expected.tolist()


@quick
@given(values=vectors, data=st.data(), size=st.integers(1, 70))
def test_a_trim_that_keeps_all_ties_keeps_what_is_not_below_the_kth(values, data, size):
    count = data.draw(st.integers(1, len(values)))
    threshold = np.sort(np.abs(values))[::-1][count - 1]
    expected = (np.abs(values) >= threshold) & (values != 0)
    assert kept_by_survey({"t": values}, count, size, ties="all").tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("density", "size", "count"),
    [
        (0.29, 100, 29),
        (0.2, 100, 20),
        (0.001, 10, 1),
        (0.0, 10, 0),
        (1.0, 10, 10),
        (0.5, 0, 0),
        (0.1, 3, 1),
        (0.7, 10, 7),
        (1e-9, 1, 1),
    ],
)
def test_the_number_kept_is_density_times_size_in_decimal(density, size, count):
    assert keep_count(density, size) == count


# Elect.

ROWS = (torch.tensor([1.0, 0, -1, 2]), torch.tensor([-1.0, 0, -2, -3]))


@pytest.mark.parametrize(
    ("rule", "majority", "expected"),
    [
        ("mergekit", 0, [[T, F, T, F], [F, F, T, T]]),
        ("sum", 0, [[F, F, T, F], [F, F, T, T]]),
        ("reference", 1, [[T, F, T, F], [F, F, T, T]]),
        ("reference", -1, [[F, F, T, F], [T, F, T, T]]),
        ("reference", 0, [[F, F, T, F], [T, F, T, T]]),
    ],
)
def test_who_agrees_with_the_elected_sign(rule, majority, expected):
    assert [mask.tolist() for mask in agreeing(ROWS, rule, majority)] == expected


def test_negative_zero_never_agrees():
    zero = torch.tensor([-0.0])
    assert [m.item() for m in agreeing((zero, torch.tensor([-1.0])), "sum")] == [F, T]


# Combine and add.


def test_the_disjoint_mean_divides_by_the_weights_that_agree():
    rows, masks = (
        [torch.tensor([2.0, 6.0]), torch.tensor([4.0, 8.0])],
        [torch.tensor([T, F]), torch.tensor([T, F])],
    )
    assert combine(rows, [1.0, 3.0], masks, normalize=True).tolist() == [1.5, 0.0]
    assert combine(rows, [1.0, 3.0], masks, normalize=False).tolist() == [6.0, 0.0]


def test_without_masks_weights_that_cancel_are_not_divided_by():
    rows = [torch.tensor([2.0]), torch.tensor([4.0])]
    assert combine(rows, [1.0, 3.0], None, normalize=True).tolist() == [1.5]
    assert combine(rows, [1.0, -1.0], None, normalize=True).tolist() == [6.0]
    assert combine(rows, [1.0, NO_WEIGHT / 2 - 1], None, normalize=True).tolist() == [6.0]


def test_an_update_of_zero_leaves_the_bits_of_the_base():
    base = torch.tensor([-0.0, 1.0])
    added = add_update(base, torch.tensor([0.0, -0.0]), 2.0)
    assert torch.equal(added.view(torch.int32), base.view(torch.int32))


# Dropping at random (DARE).

ONES = {"a": torch.ones(4096)}
dare = partial(apply, "dare_linear", torch.zeros(4096))


def test_the_mean_over_seeds_approaches_the_dense_task_vector():
    each = {"a": {"density": 0.4}}
    mean = torch.stack([dare(ONES, each, seed=seed) for seed in range(200)]).mean(0)
    # A survivor is 2.5; the mean of 200 has a standard deviation of 0.087.
    assert abs(mean.mean() - 1) < 5 * 0.087 / 64
    assert (mean - 1).abs().max() < 6 * 0.087


@pytest.mark.parametrize("density", [0.0, 0.25, 0.9, 1.0])
def test_as_many_elements_stay_as_the_density_says(density):
    kept = dare(ONES, {"a": {"density": density}}, rescale="none")
    spread = 5 * (density * (1 - density) / 4096) ** 0.5
    assert set(kept.tolist()) <= {0.0, 1.0}
    assert abs(kept.mean().item() - density) <= spread


@pytest.mark.parametrize("block", [1000, 4096])
def test_a_mask_depends_on_seed_label_name_and_index_alone(block):
    other = {"b": torch.ones(4096)}
    alone = dare(ONES, block=block)
    assert torch.equal(alone, dare(ONES))
    assert torch.equal(alone, dare(other | ONES, {"b": {"weight": 0.0}}))
    assert not torch.equal(alone, dare({"b": ONES["a"]}))
    assert not torch.equal(alone, dare(ONES, tensor="another"))
    assert not torch.equal(alone, dare(ONES, seed=1))


def test_survivors_are_divided_by_the_density_or_keep_the_l1_norm():
    vector = {"a": torch.randn(4096, generator=torch.Generator().manual_seed(0))}
    each = {"a": {"density": 0.25}}
    plain = dare(vector, each, rescale="none")
    ratio = vector["a"].double().abs().sum() / plain.double().abs().sum()
    assert torch.equal(dare(vector, each, rescale="inverse"), plain * 4)
    assert_close(dare(vector, each, rescale="l1"), (plain * ratio).float())


def test_dare_ties_elects_among_survivors():
    base, models = torch.zeros(4096), {"a": torch.ones(4096), "b": torch.full((4096,), -2.0)}
    each = {"a": {"density": 0.5}, "b": {"density": 0.5}}
    merged = apply("dare_ties", base, models, each, rescale="none")
    a, b = (
        dare({label: m}, {label: {"density": 0.5}}, rescale="none") for label, m in models.items()
    )
    assert torch.equal(merged, torch.where(b != 0, b, a))
