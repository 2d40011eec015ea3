"""Merges in order of how much of the inputs' best they keep."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import fmean

from mergepipe.evaluate.score import ScoreRow

__all__ = ["LEAGUE", "league"]

LEAGUE = "league"


def league(
    rows: Sequence[ScoreRow], inputs: Collection[str], beside: Collection[str] = ()
) -> tuple[ScoreRow, ...]:
    """Give the rows of the inputs, of the merges, the best merge first, and of models `beside`.

    Every model also gets `kept`: on average over the evaluations, its score as a percentage of
    the best input's (value / best, or best / value where lower is better). Evaluations of which
    neither is better tell nothing of that and are left out; those that a model beside was not
    asked do not count for it. There is no `kept` where that leaves none.
    """
    mains = {(row.model, row.evaluation): row for row in reversed(rows)}
    ranking = tuple(
        dict.fromkeys(row.evaluation for row in mains.values() if row.higher_is_better is not None)
    )
    best = {
        name: _best([mains[label, name] for label in inputs if (label, name) in mains])
        for name in ranking
    }
    models = tuple(dict.fromkeys(row.model for row in rows))
    kept: dict[str, float] = {}
    for model in models:
        asked = [name for name in ranking if model not in beside or (model, name) in mains]
        if asked:
            kept[model] = fmean(_share(mains.get((model, name)), best[name]) for name in asked)
    merges = sorted(
        (model for model in models if model not in {*inputs, *beside}),
        key=lambda model: -kept[model] if math.isfinite(kept.get(model, math.nan)) else math.inf,
    )
    first, last = ([one for one in models if one in group] for group in (inputs, beside))
    found: list[ScoreRow] = []
    for model in (*first, *merges, *last):
        found += [row for row in rows if row.model == model]
        found += [_kept(model, kept[model], len(ranking))] if model in kept else []
    return tuple(found)


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
