"""Whether what a search found is real: paired comparisons on items that it never saw.

The best of many noisy candidates looks better than it is. So the finalists are scored again on
`holdout`, the best of these is the winner, and it is reported once on `final`, against the untuned
merge and the best input: the difference of losses, with the 2.5 and 97.5 percentiles of a bootstrap
over items that both share in every resample, evaluation by evaluation (Efron and Tibshirani, 1993).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from mergepipe.evaluate import Formula, Part, ScoreRow
from mergepipe.evaluate.result import clusters_of
from mergepipe.evaluate.statistics import Array, clustered, resampled
from mergepipe.search.objective import Objective

__all__ = ["Gain", "Rows", "Verdict", "gain", "overfit"]

_LEAST = 2  # items, for an interval


@dataclass(frozen=True, slots=True)
class Gain:
    """How much smaller the winner's loss is than another's, on `n` items; above 0 is better.

    `low` and `high` bound 95 %; None where a metric does not say how it comes from items.
    """

    over: str
    part: Part | None  # None: the items that were searched on
    value: float
    low: float | None
    high: float | None
    n: int
    evaluation: str | None = None  # None: all of them together

    @property
    def is_real(self) -> bool:
        """Whether the winner is better beyond chance."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Verdict:
    """What the held-out items say of the winner.

    `gap` is how much more was gained over the untuned merge on searched items than on held-out
    ones, as (value, low, high); `spread` how much the winner's loss moved when it was evaluated
    again, where it moved.
    """

    winner: int
    part: Part | None
    gains: tuple[Gain, ...]
    best_input: str
    gap: tuple[float, float, float] | None = None
    is_overfit: bool = False
    spread: float | None = None

    def plain(self) -> dict[str, object]:
        """Give it as JSON has it."""
        return {
            **asdict(self),
            "gains": [asdict(one) | {"real": one.is_real} for one in self.gains],
        }


Rows = Mapping[str, ScoreRow]


def gain(
    objective: Objective,
    rows: Rows,
    other: Rows,
    *,
    over: str,
    part: Part | None,
    evaluation: str | None = None,
) -> Gain:
    """Compare the rows of the winner with those of another model, on items that both have."""
    weights = {
        name: weight for name, weight in objective.weights.items() if evaluation in (None, name)
    }
    losses = _losses(objective, weights, rows, other)
    count = sum(rows[name].n for name in weights)
    total = sum(weights.values())
    if losses is None:
        value = sum(
            weight * (_loss(objective, other[name]) - _loss(objective, rows[name]))
            for name, weight in weights.items()
        )
        return Gain(over, part, value / total, None, None, count, evaluation)
    value, draws = losses
    low, high = np.quantile(draws, [0.025, 0.975])
    return Gain(over, part, value, float(low), float(high), count, evaluation)


def overfit(
    objective: Objective, searched: tuple[Rows, Rows], held: tuple[Rows, Rows]
) -> tuple[tuple[float, float, float], bool] | None:
    """Give the gap between the gains on searched and held-out items, and whether it is real.

    Each pair is the rows of winner and untuned merge. That gains are compared, and not losses,
    keeps a part that is harder from being taken for over-fitting. The gap is real if its interval
    lies above 0 and it is more than two standard errors.
    """
    weights = objective.weights
    first = _losses(objective, weights, *searched, seed=1)
    second = _losses(objective, weights, *held, seed=2)
    if first is None or second is None:
        return None
    draws = first[1] - second[1]
    low, high = (float(one) for one in np.quantile(draws, [0.025, 0.975]))
    value = first[0] - second[0]
    return (value, low, high), low > 0 and value > 2 * float(draws.std())


def _loss(objective: Objective, row: ScoreRow) -> float:
    return objective.loss(row.evaluation, row.value, row)


def _losses(
    objective: Objective, weights: Mapping[str, float], rows: Rows, other: Rows, *, seed: int = 0
) -> tuple[float, Array] | None:
    """Give the other's loss less ours, and the same of every resample."""
    value, draws, total = 0.0, np.zeros(1), sum(weights.values())
    for at, (name, weight) in enumerate(weights.items()):
        row, theirs = rows[name], other[name]
        paired = _paired(row, theirs)
        formula = row.formula
        if paired is None or formula is None:
            return None
        found = np.concatenate(list(resampled(paired, 100 * seed + at)))
        share = weight / total
        value += share * float(_difference(objective, row, formula, paired.sum(0)))
        draws = draws + share * _difference(objective, row, formula, found)
    return value, draws


def _difference(objective: Objective, row: ScoreRow, formula: Formula, sums: Array) -> Array:
    ours, theirs = formula.of(sums[..., :2]), formula.of(sums[..., 2:])
    name = row.evaluation
    return objective.loss(name, theirs, row) - objective.loss(name, ours, row)


def _paired(row: ScoreRow, other: ScoreRow) -> Array | None:
    """Give the sums of both on each item or cluster: [n, 4]."""
    if row.formula is None or other.formula != row.formula:
        return None
    known = {item.id: item for item in other.items}
    ours = [item for item in row.items if item.id in known]
    theirs = [known[item.id] for item in ours]
    if len(ours) < _LEAST:
        return None
    sums = np.hstack([row.formula.sums(ours), row.formula.sums(theirs)])
    return clustered(sums, clusters_of(ours))
