"""What an evaluator gives: values of items, and metrics made of them with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mergepipe.evaluate.statistics import Array, ratio_error, t_interval, wilson
from mergepipe.model import Usage

__all__ = ["Formula", "Item", "Metric", "Result", "Unscored", "interval", "mean", "ratio"]


@dataclass(frozen=True, slots=True)
class Formula:
    """How a metric comes from values of items: scale · Σ numerator / Σ denominator, or e to that.

    Without a denominator it is a mean. Two models are compared by it, item by item.
    """

    numerator: str
    denominator: str | None = None
    scale: float = 1.0
    exponential: bool = False

    def sums(self, items: Sequence[Item]) -> Array:
        """Give numerator and denominator of each item, [n, 2]."""
        below = self.denominator
        pairs = [
            (item.values[self.numerator], 1.0 if below is None else item.values[below])
            for item in items
        ]
        return np.array(pairs, dtype=np.float64).reshape(-1, 2)

    def of(self, sums: Array) -> Array:
        """Give the metric of sums of numerators and denominators, [..., 2] -> [...]."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = self.scale * sums[..., 0] / sums[..., 1]
            return np.exp(values) if self.exponential else values


@dataclass(frozen=True, slots=True)
class Metric:
    """A number for all items: what it is over (`n` items), in what unit, and which way is up.

    Neither way is for what describes and does not judge: `higher_is_better` is None, and nothing
    is ranked by it. `stderr` is its standard error, where there is one.
    """

    value: float
    higher_is_better: bool | None
    n: int
    unit: str
    stderr: float | None = None
    formula: Formula | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """What was measured on one item; `id` is the same for every model.

    Items that hang together (questions on one passage) have the same `cluster`.
    """

    id: str
    values: Mapping[str, float]
    cluster: str | None = None


@dataclass(frozen=True, slots=True)
class Unscored:
    """An item that could not be scored through no fault of the model: a judge's, a server's.

    It is left out of the metrics, and counted. What the model itself got wrong is an `Item`.
    """

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Result:
    """What an evaluator found. The first metric is the main one, shown in tables.

    `lossy` are the ids of items whose text the model's tokenizer cannot express. `judges` is what
    others than the model have cost; `usage`, what the model has, is filled in for the evaluator,
    and so is whether the result is a kept one, which then costs nothing any more.
    """

    metrics: Mapping[str, Metric]
    items: tuple[Item, ...]
    unscored: tuple[Unscored, ...] = ()
    lossy: tuple[str, ...] = ()
    judges: Usage | None = None
    usage: Usage = field(default_factory=Usage)
    cached: bool = field(default=False, compare=False)


def mean(
    items: Sequence[Item], key: str, *, unit: str, higher_is_better: bool | None = True
) -> Metric:
    """Give the mean of a value over all items, with its standard error.

    Raises
    ------
    ValueError
        if there is no item.

    """
    return _metric(items, Formula(key), unit, higher_is_better)


def ratio(
    items: Sequence[Item],
    numerator: str,
    denominator: str,
    *,
    unit: str,
    scale: float = 1.0,
    exponential: bool = False,
    higher_is_better: bool | None = False,
) -> Metric:
    """Give scale · Σ numerator / Σ denominator over all items, or e to that, with its error.

    It is no mean of ratios: each unit of the denominator has the same weight.

    Raises
    ------
    ValueError
        if the denominators add up to nothing.

    """
    formula = Formula(numerator, denominator, scale, exponential)
    return _metric(items, formula, unit, higher_is_better)


def _metric(
    items: Sequence[Item], formula: Formula, unit: str, higher_is_better: bool | None
) -> Metric:
    sums = formula.sums(items)
    above, below = math.fsum(sums[:, 0]), math.fsum(sums[:, 1])
    if not below:
        raise ValueError(f"no items, or {formula.denominator} is 0 in all of them")
    value = formula.scale * above / below
    error = abs(formula.scale) * ratio_error(sums[:, 0], sums[:, 1], clusters_of(items))
    if formula.exponential:
        value = _exp(value)
        error *= value  # the delta method once more
    stderr = error if math.isfinite(error) else None
    return Metric(value, higher_is_better, len(items), unit, stderr, formula)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def clusters_of(items: Sequence[Item]) -> list[str] | None:
    """Give each item's cluster, its own where it has none; None where no item has one."""
    if all(item.cluster is None for item in items):
        return None
    return [f"item {one.id}" if one.cluster is None else f"cluster {one.cluster}" for one in items]


def interval(metric: Metric, items: Sequence[Item]) -> tuple[float, float] | None:
    """Give the 95 % interval: Wilson's for shares of right answers, else Student's."""
    if metric.stderr is None or metric.formula is None:
        return None
    clusters, formula = clusters_of(items), metric.formula
    if clusters is None and formula == Formula(formula.numerator):
        values = [item.values[formula.numerator] for item in items]
        if set(values) <= {0.0, 1.0}:
            return wilson(math.fsum(values), len(values))
    freedom = len(items if clusters is None else set(clusters)) - 1
    if formula.exponential:
        exponent = math.log(metric.value), metric.stderr / metric.value
        low, high = t_interval(*exponent, freedom)
        return _exp(low), _exp(high)
    return t_interval(metric.value, metric.stderr, freedom)
