"""Merges in order of how much of the inputs' best they keep."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import fmean

from mergepipe.evaluate.score import ScoreRow

__all__ = ["LEAGUE", "league"]

LEAGUE = "league"


def league(rows: Sequence[ScoreRow], inputs: Collection[str]) -> tuple[ScoreRow, ...]:
    """Give the rows of the inputs, then those of the merges, the best merge first.

    Every model also gets `kept`: on average over the evaluations, its score as a percentage of
    the best input's (value / best, or best / value where lower is better).
    """
    mains = {(row.model, row.evaluation): row for row in reversed(rows)}
    evaluations = tuple(dict.fromkeys(row.evaluation for row in rows))
    best = {
        name: _best([mains[label, name] for label in inputs if (label, name) in mains])
        for name in evaluations
    }
    models = tuple(dict.fromkeys(row.model for row in rows))
    kept = {
        model: fmean(_share(mains.get((model, name)), best[name]) for name in evaluations)
        for model in models
    }
    merges = sorted(
        (model for model in models if model not in inputs),
        key=lambda model: -kept[model] if math.isfinite(kept[model]) else math.inf,
    )
    return tuple(
        row
        for model in (*(one for one in models if one in inputs), *merges)
        for row in (
            *(row for row in rows if row.model == model),
            _kept(model, kept[model], len(evaluations)),
        )
    )


def _best(rows: Sequence[ScoreRow]) -> float:
    values = [row.value for row in rows if math.isfinite(row.value)]
    choose = max if any(row.higher_is_better for row in rows) else min
    return choose(values, default=math.nan)


def _share(row: ScoreRow | None, best: float) -> float:
    if row is None:  # its evaluation failed
        return math.nan
    above, below = (row.value, best) if row.higher_is_better else (best, row.value)
    return above / below if below else 1.0 if above == below else math.nan


def _kept(model: str, value: float, count: int) -> ScoreRow:
    return ScoreRow(model, "kept", LEAGUE, "kept", 100 * value, "%", True, count, ())
