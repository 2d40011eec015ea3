"""Standard errors, intervals and tests: by hand, against scipy's, and by simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mergepipe.evaluate import Item, ScoreRow, differences, interval, mean, ratio
from mergepipe.evaluate.statistics import (
    average_error,
    clustered,
    holm,
    items_needed,
    mcnemar,
    ratio_error,
    resampled,
    t_interval,
    t_probability,
    wilson,
)

NUMBERS = st.lists(st.floats(-100, 100), min_size=3, max_size=30)


@given(NUMBERS)
def test_the_error_of_a_mean_is_s_over_root_n(values):
    expected = stats.sem(values)
    assert ratio_error(np.array(values), np.ones(len(values))) == pytest.approx(expected, abs=1e-9)


def test_the_error_of_a_clustered_mean_by_hand():
    # Mean 2, deviations -1, 1, -1, 1; of the clusters 0 and 0, or -2 and 2.
    values, ones = np.array([1.0, 3.0, 1.0, 3.0]), np.ones(4)
    assert ratio_error(values, ones, ["a", "a", "b", "b"]) == 0
    apart = ratio_error(values, ones, ["a", "b", "a", "b"])
    assert apart == pytest.approx(math.sqrt(2 / 1 * (4 + 4)) / 4)


def test_clusters_of_one_item_are_no_clusters():
    values, sizes = np.array([1.0, 5.0, 2.0]), np.array([2.0, 3.0, 4.0])
    assert ratio_error(values, sizes, ["a", "b", "c"]) == ratio_error(values, sizes)


def test_the_error_of_a_ratio_is_what_repeating_it_shows():
    generator = np.random.default_rng(0)
    sizes = generator.integers(10, 200, (2000, 100)).astype(float)
    nats = sizes * generator.normal(1.0, 0.2, sizes.shape)
    observed = (nats.sum(1) / sizes.sum(1)).std()
    errors = [ratio_error(x, b) for x, b in zip(nats, sizes, strict=True)]
    assert np.mean(errors) == pytest.approx(observed, rel=0.05)


def test_one_item_says_nothing_of_the_error():
    assert math.isnan(ratio_error(np.array([1.0]), np.array([2.0])))
    assert mean([Item("1", {"x": 1.0})], "x", unit="u").stderr is None


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 101, 1000])
@pytest.mark.parametrize("t", [0.0, 0.1, 1.0, 2.5, 8.0, -2.5])
def test_students_probability_is_scipys(t, freedom):
    expected = 2 * stats.t.sf(abs(t), freedom)
    assert t_probability(t, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("freedom", [1, 4, 47, 300])
def test_students_interval_is_scipys(freedom):
    low, high = t_interval(1.5, 0.2, freedom)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, freedom, 1.5, 0.2), rel=1e-9)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (8, 10), (5, 5), (83, 100)])
def test_wilsons_interval_is_scipys(right, n):
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_is_that_of_the_sign_test(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_mcnemars_p_of_many_discordant_items_is_finite():
    assert mcnemar(5000, 5400) == pytest.approx(stats.binomtest(5000, 10400).pvalue, rel=1e-6)


def test_holm_by_hand():
    # Sorted: 0.005·4, 0.01·3, 0.03·2, 0.04·1, each at least the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_items_needed_as_published():
    # Two points of accuracy with a tenth of the answers discordant: about 1 960.
    assert items_needed(math.sqrt(0.1 - 0.02**2), 0.02) == 1955


def test_the_error_of_an_average_by_hand():
    assert average_error([3.0, 4.0]) == 2.5


def test_resamples_draw_every_item_as_often_and_columns_together():
    sums = np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    drawn = np.concatenate(list(resampled(sums, seed=1)))
    assert drawn.shape == (10_000, 2)
    assert np.array_equal(drawn[:, 1], 10 * drawn[:, 0])
    assert drawn[:, 0].mean() == pytest.approx(9, rel=0.02)


def test_resamples_are_the_same_for_a_seed():
    sums = np.arange(10.0).reshape(5, 2)
    first, same, other = (np.concatenate(list(resampled(sums, seed))) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_clusters_are_added_up_in_order_of_sight():
    assert clustered(np.array([1.0, 2.0, 4.0]), ["b", "a", "b"]).tolist() == [5.0, 2.0]


# Metrics


def test_a_ratio_weighs_every_unit_and_not_every_item():
    items = [Item("1", {"nats": 1.0, "bytes": 1}), Item("2", {"nats": 6.0, "bytes": 3})]
    metric = ratio(items, "nats", "bytes", unit="u", scale=2)
    # Residuals 1 - 1.75, 6 - 5.25: √(2 (0.5625 + 0.5625)) / 4, twice.
    assert (metric.value, metric.stderr) == pytest.approx((3.5, 2 * math.sqrt(2.25) / 4))


def test_an_exponential_has_the_error_of_its_exponent_times_itself():
    items = [Item("1", {"nats": 1.0, "bytes": 1}), Item("2", {"nats": 6.0, "bytes": 3})]
    plain = ratio(items, "nats", "bytes", unit="u")
    power = ratio(items, "nats", "bytes", unit="u", exponential=True)
    assert power.value == math.exp(1.75)
    assert power.stderr == pytest.approx(plain.stderr * power.value)
    low, high = interval(plain, items)
    assert interval(power, items) == pytest.approx((math.exp(low), math.exp(high)))


def test_shares_have_wilsons_interval_and_other_means_students():
    right = [Item(str(i), {"x": float(i < 8)}) for i in range(10)]
    assert interval(mean(right, "x", unit="u"), right) == wilson(8, 10)
    other = [Item(str(i), {"x": i / 2}) for i in range(10)]
    metric = mean(other, "x", unit="u")
    assert interval(metric, other) == t_interval(metric.value, metric.stderr, 9)


@pytest.mark.parametrize("values", [[], [{"nats": 1.0, "bytes": 0}]])
def test_a_ratio_of_nothing_is_refused(values):
    with pytest.raises(ValueError, match="no items"):
        ratio([Item(str(i), one) for i, one in enumerate(values)], "nats", "bytes", unit="u")


# Differences


def rows_of(*values, evaluation="e", up=True, clusters=None):
    """One row a model: `base`, `m1`, `m2` ..., with these values of its items."""
    found = []
    for i, of_model in enumerate(values):
        labels = clusters or [None] * len(of_model)
        items = tuple(
            Item(str(j), {"x": float(value)}, label)
            for j, (value, label) in enumerate(zip(of_model, labels, strict=True))
        )
        one = mean(items, "x", unit="u", higher_is_better=up)
        name = f"m{i}" if i else "base"
        found.append(
            ScoreRow(name, evaluation, "v", "x", one.value, "u", up, one.n, items,
                     one.stderr, one.formula)
        )  # fmt: skip
    return found


def test_a_difference_of_means_by_hand():
    noise = np.random.default_rng(0).normal(0, 1, 200)
    [found] = differences(rows_of(noise, noise + np.linspace(0, 1, 200)), "base")
    assert found.value == pytest.approx(0.5)
    assert found.p == pytest.approx(stats.ttest_1samp(np.linspace(0, 1, 200), 0).pvalue, abs=1e-12)
    assert found.low == pytest.approx(0.5 - 1.96 * 0.2901 / math.sqrt(200), abs=0.003)
    assert (found.n, found.better, found.worse) == (200, 199, 0)
    assert found.verdict == "better"


def test_right_and_wrong_are_compared_by_discordant_items():
    base, other = [0] * 10 + [1] * 10, [1] * 9 + [0] + [0] + [1] * 9
    [found] = differences(rows_of(base, other), "base")
    assert (found.better, found.worse, found.p) == (9, 1, mcnemar(9, 1))


def test_lower_may_be_better():
    noise = np.random.default_rng(0).normal(0, 1, 50)
    [found] = differences(rows_of(noise, noise - 1 + noise / 100, up=False), "base")
    assert found.verdict == "better"


def test_pairing_sees_what_the_errors_hide():
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 5, 100)
    rows = rows_of(hard, hard + generator.normal(0.2, 0.3, 100))
    assert abs(rows[1].value - rows[0].value) < rows[0].stderr
    assert differences(rows, "base")[0].verdict == "better"


def test_only_common_items_are_compared():
    first, second = rows_of([1, 2, 3], [2, 3, 5])
    [found] = differences([first, replace(second, items=second.items[1:])], "base")
    assert (found.n, found.value) == (2, 1.5)


def test_clusters_are_the_units_where_items_have_them():
    generator = np.random.default_rng(0)
    shift = np.repeat(generator.normal(0.1, 1, 4), 25)
    base = generator.normal(0, 1, 100)
    alone = differences(rows_of(base, base + shift), "base")[0]
    labels = [f"c{i // 25}" for i in range(100)]
    together = differences(rows_of(base, base + shift, clusters=labels), "base")[0]
    assert together.p > 10 * alone.p
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_one_chance_difference_among_many_is_not_real():
    generator = np.random.default_rng(3)
    base = generator.normal(0, 1, 60)
    others = [base + generator.normal(0, 1, 60) for _ in range(40)]
    found = differences(rows_of(base, *others), "base")
    assert min(one.p for one in found) < 0.05
    assert [one.verdict for one in found if one.verdict] == []
    assert all(one.p_corrected >= one.p for one in found)


def test_equal_models_do_not_differ():
    [found] = differences(rows_of([1, 2, 3], [1, 2, 3]), "base")
    assert (found.value, found.p, found.verdict) == (0.0, 1.0, None)


def test_a_metric_that_is_not_made_of_items_is_not_compared():
    rows = [replace(row, formula=None) for row in rows_of([1, 2], [3, 4])]
    assert differences(rows, "base") == ()


def test_intervals_hold_what_they_promise():
    """Of 200 experiments, 95 % of the intervals should hold the truth: bits per byte, 60 texts."""
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        sizes = generator.integers(20, 300, 60)
        hard = generator.gamma(5, 0.2, 60)
        pair = []
        for shift in (0.0, 0.05):
            values = sizes * (hard + shift + generator.normal(0, 0.1, 60))
            items = [Item(str(i), {"x": x, "b": float(b)}) for i, (x, b) in
                     enumerate(zip(values, sizes, strict=True))]  # fmt: skip
            one = ratio(items, "x", "b", unit="u")
            pair.append(
                ScoreRow(f"{shift}", "e", "v", "x", one.value, "u", False, 60, tuple(items),
                         one.stderr, one.formula)
            )  # fmt: skip
        [found] = differences(pair, "0.0")
        held += found.low <= 0.05 <= found.high
    assert 0.9 < held / 200 < 0.98


def test_exact_binomials_by_fractions():
    # P(X <= 1 or X >= 5) of six fair coins.
    assert mcnemar(1, 5) == Fraction(14, 64)
