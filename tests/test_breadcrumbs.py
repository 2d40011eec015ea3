"""Breadcrumbs: which elements stay, by hand and by sorting; what the election adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mergepipe.method import apply

NORMAL = torch.randn((300, 1000), generator=torch.Generator().manual_seed(0))
every_scope = pytest.mark.parametrize("scope", ["tensor", "row"])


def crumbs(values, density, gamma, **shared):
    """One task vector with both its tails dropped."""
    vector = torch.as_tensor(values)
    each = {"a": {"density": density, "gamma": gamma}}
    return apply("breadcrumbs", torch.zeros_like(vector), {"a": vector}, each, **shared)


def kept(*arguments, **shared):
    """The indexes of the elements that stay."""
    return crumbs(*arguments, **shared).nonzero().flatten().tolist()


def whole_numbers(shape, seed=0):
    """Numbers of few magnitudes, none of them 0, so that most of them are tied."""
    draws = np.random.default_rng(seed)
    values = draws.integers(1, 5, shape) * draws.choice([-1, 1], shape)
    return torch.from_numpy(values.astype(np.float32))


def by_sorting(vector, density, gamma, *, cut):
    """The same with a full stable sort; `cut` drops fewer outliers where too few are left."""
    order = np.argsort(-np.abs(vector), kind="stable")
    stay, top = int(density * len(vector) + 1e-9), int(gamma * len(vector) + 1e-9)
    top = min(top, len(vector) - stay) if cut else top
    out = np.zeros_like(vector)
    out[order[top : top + stay]] = vector[order[top : top + stay]]
    return out


# Which elements stay.


@every_scope
def test_the_largest_and_the_smallest_are_dropped(scope):
    values = [9.0, -1, 2, -3, 4, 8, -7, 0.5, 6, 5]
    assert kept(values, 0.3, 0.2, scope=scope) == [6, 8, 9]
    assert kept(values, 0.3, 0.0, scope=scope) == [0, 5, 6]


@every_scope
def test_of_equal_magnitudes_the_first_count_as_the_larger(scope):
    assert kept([1.0, -1] * 5, 0.3, 0.2, scope=scope) == [2, 3, 4]


def test_fewer_outliers_are_dropped_where_too_few_elements_would_stay():
    values = [float(x) for x in range(10, 0, -1)]
    assert kept(values, 0.9, 0.3) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert kept(values, 1.0, 0.3) == list(range(10))


def test_in_rows_outliers_go_first_and_fewer_elements_stay():
    values = [float(x) for x in range(10, 0, -1)]
    assert kept(values, 0.9, 0.3, scope="row") == [3, 4, 5, 6, 7, 8, 9]
    assert kept(values, 1.0, 1.0, scope="row") == []


@every_scope
def test_fractions_are_taken_in_decimal(scope):
    hundred = [float(x) for x in range(100, 0, -1)]
    assert int(0.29 * 100) == 28
    assert kept(hundred, 0.58, 0.29, scope=scope) == list(range(29, 87))


@every_scope
@pytest.mark.parametrize("density", [0.0, 0.01, 0.24])
def test_a_share_below_one_element_keeps_nothing(scope, density):
    assert kept([1.0, 2, 3, 4], density, 0.0, scope=scope) == []


@pytest.mark.parametrize("block", [1, 17, 60, 1 << 20])
@pytest.mark.parametrize("seed", range(5))
def test_tensors_are_masked_as_a_stable_sort_does_it(seed, block):
    values = whole_numbers((12, 20), seed)
    expected = by_sorting(values.flatten().numpy(), 0.45, 0.15, cut=True)
    actual = crumbs(values, 0.45, 0.15, block=block)
    assert actual.flatten().tolist() == expected.tolist()


@pytest.mark.parametrize("values", [whole_numbers((300, 1000)), NORMAL], ids=["tied", "normal"])
def test_large_tensors_are_too(values):
    expected = by_sorting(values.flatten().numpy(), 0.45, 0.15, cut=True)
    actual = crumbs(values, 0.45, 0.15, block=70_000)
    assert torch.equal(actual.flatten(), torch.from_numpy(expected))


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize("shape", [(20,), (1, 20), (12, 20), (3, 4, 20), (7, 1)], ids=str)
def test_rows_are_masked_each_by_itself_in_any_shape(shape, block):
    values = whole_numbers(shape)
    rows = values.reshape(-1, shape[-1]).numpy()
    expected = np.concatenate([by_sorting(row, 0.85, 0.2, cut=False) for row in rows])
    actual = crumbs(values, 0.85, 0.2, scope="row", block=block)
    assert actual.flatten().tolist() == expected.tolist()


def test_each_model_has_its_own_density_and_gamma():
    models = {"a": torch.tensor([4.0, 3, 2, 1]), "b": torch.tensor([10.0, 20, 30, 40])}
    each = {"a": {"density": 0.5, "gamma": 0.25}, "b": {"density": 0.25, "gamma": 0, "weight": 2.0}}
    merged = apply("breadcrumbs", torch.ones(4), {k: v + 1 for k, v in models.items()}, each)
    assert merged.tolist() == [1, 4, 3, 81]


def test_normalize_divides_by_all_weights():
    a, b = torch.tensor([8.0, 6, 2, 1]), torch.tensor([1.0, 2, 4, 9])
    each = {k: {"density": 0.5, "gamma": 0.25, "weight": w} for k, w in (("a", 3.0), ("b", 1.0))}
    merged = apply("breadcrumbs", torch.zeros(4), {"a": a, "b": b}, each, normalize=True)
    assert_close(merged, torch.tensor([0, (3 * 6 + 2) / 4, (3 * 2 + 4) / 4, 0]))


# With an election of signs.

A, B = torch.tensor([9.0, 3, 2, 4, 1]), torch.tensor([1.0, -2, 4, -4, 9])


@every_scope
@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        ({"elect": "sum"}, [0, 3, 6, 0, 0]),
        ({"elect": "mergekit"}, [0, 3, 6, 4, 0]),
        ({"elect": "reference"}, [0, 3, 6, -4, 0]),
        ({"elect": "mergekit", "normalize": True}, [0, 3, 3, 4, 0]),
    ],
    ids=str,
)
def test_signs_are_elected_among_what_stays(scope, shared, expected):
    each = {label: {"density": 0.6, "gamma": 0.2} for label in "ab"}
    merged = apply(
        "breadcrumbs_ties", torch.zeros(5), {"a": A, "b": B}, each, scope=scope, **shared
    )
    assert merged.tolist() == expected


@every_scope
def test_one_model_needs_no_election(scope):
    values = whole_numbers((6, 10))
    each = {"a": {"density": 0.5, "gamma": 0.1}}
    merged = apply("breadcrumbs_ties", torch.zeros(6, 10), {"a": values}, each, scope=scope)
    assert torch.equal(merged, crumbs(values, 0.5, 0.1, scope=scope))
