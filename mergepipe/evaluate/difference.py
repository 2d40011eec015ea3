"""Which differences between models are real: paired, item by item, and corrected for their number.

Two models are compared on the items that both were scored on. The interval is the percentile
bootstrap's, over items (or clusters) that both models share in every resample; p is McNemar's
exact one for right and wrong, else that of Student's paired t, whose standard error is the delta
method's for ratios such as bits per byte. p values of all comparisons are corrected by Holm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mergepipe.evaluate.result import Formula, Item, clusters_of
from mergepipe.evaluate.score import ScoreRow
from mergepipe.evaluate.statistics import Array, clustered, holm, mcnemar, resampled, t_probability

__all__ = ["LEVEL", "Difference", "differences"]

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Difference:
    """A model's main metric less the reference's, on the `n` items that both have.

    `low` and `high` bound 95 %; `p` is that of one comparison alone, `p_corrected` of all of
    them. The model does better on `better` items, worse on `worse`.
    """

    model: str
    reference: str
    evaluation: str
    metric: str
    value: float
    low: float
    high: float
    p: float
    p_corrected: float
    n: int
    better: int
    worse: int
    higher_is_better: bool

    @property
    def verdict(self) -> Literal["better", "worse"] | None:
        """Whether it is real, and which way."""
        if self.p_corrected >= LEVEL or self.low <= 0 <= self.high:
            return None
        return "better" if (self.value > 0) == self.higher_is_better else "worse"


def differences(
    rows: Sequence[ScoreRow], reference: str, *, seed: int = 0
) -> tuple[Difference, ...]:
    """Compare the main metric of every model with the reference's, evaluation by evaluation.

    Metrics that do not say how they come from items cannot be compared, and those of which neither
    way is better need not be: both are left out.
    """
    mains: dict[str, dict[str, ScoreRow]] = {}
    for row in rows:
        mains.setdefault(row.evaluation, {}).setdefault(row.model, row)
    found = [
        difference
        for of_evaluation in mains.values()
        if reference in of_evaluation
        for model, row in of_evaluation.items()
        if model != reference
        and (difference := _difference(row, of_evaluation[reference], seed)) is not None
    ]
    corrected = holm([one.p for one in found])
    return tuple(replace(one, p_corrected=p) for one, p in zip(found, corrected, strict=True))


def _difference(row: ScoreRow, other: ScoreRow, seed: int) -> Difference | None:
    formula, upward = row.formula, row.higher_is_better
    if formula is None or upward is None or other.formula != formula or other.metric != row.metric:
        return None
    theirs: Mapping[str, Item] = {item.id: item for item in other.items}
    # Per byte of a text that one of them cannot express, the two are scored on different texts.
    unfair = set(row.lossy) ^ set(other.lossy) if formula.denominator is not None else ()
    pairs = [
        (item, theirs[item.id]) for item in row.items if item.id in theirs and item.id not in unfair
    ]
    if not pairs:
        return None
    sums = np.hstack(
        [formula.sums([pair[0] for pair in pairs]), formula.sums([pair[1] for pair in pairs])]
    )
    clusters = clusters_of([mine for mine, _ in pairs])
    units = clustered(sums, clusters)
    if len(units) < 2:  # noqa: PLR2004
        return None
    better, worse = _wins(formula, sums, higher_is_better=upward)
    low, high = np.quantile(
        np.concatenate([_values(formula, block) for block in resampled(units, seed)]),
        [LEVEL / 2, 1 - LEVEL / 2],
    )
    is_right_or_wrong = clusters is None and formula == Formula(formula.numerator)
    is_right_or_wrong &= bool(np.isin(sums, (0.0, 1.0)).all())
    p = mcnemar(better, worse) if is_right_or_wrong else _t_test(formula, units)
    return Difference(
        model=row.model,
        reference=other.model,
        evaluation=row.evaluation,
        metric=row.metric,
        value=float(_values(formula, sums.sum(0))),
        low=float(low),
        high=float(high),
        p=p,
        p_corrected=p,
        n=len(pairs),
        better=better,
        worse=worse,
        higher_is_better=upward,
    )


def _values(formula: Formula, sums: Array) -> Array:
    """Give the difference of the metric, of sums [..., (x, b, x', b')]."""
    return formula.of(sums[..., :2]) - formula.of(sums[..., 2:])


def _wins(formula: Formula, sums: Array, *, higher_is_better: bool) -> tuple[int, int]:
    each = _values(formula, sums) * (1 if higher_is_better else -1)
    return int((each > 0).sum()), int((each < 0).sum())


def _t_test(formula: Formula, units: Array) -> float:
    """Give p of no difference; of the exponents, where the metric is an exponential."""
    x, b, x_other, b_other = units.T
    influence = (x - x.sum() / b.sum() * b) / b.sum()
    influence -= (x_other - x_other.sum() / b_other.sum() * b_other) / b_other.sum()
    count = len(units)
    error = abs(formula.scale) * math.sqrt(count / (count - 1) * float((influence**2).sum()))
    value = formula.scale * float(x.sum() / b.sum() - x_other.sum() / b_other.sum())
    if not value:
        return 1.0
    return t_probability(value / error if error else math.inf, count - 1)
