"""Scores as JSON: for machines without the items, in files with every one of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from mergepipe.evaluate.difference import Difference
from mergepipe.evaluate.result import Metric, interval
from mergepipe.evaluate.running import Failure
from mergepipe.evaluate.score import ScoreRow

__all__ = ["results_json", "results_jsonl"]


def results_json(
    rows: Iterable[ScoreRow],
    failures: Iterable[Failure] = (),
    differences: Sequence[Difference] = (),
) -> dict[str, object]:
    """Give scores, differences and failures as JSON has them; NaN and infinity become null."""
    found: dict[str, object] = {"results": [_summary(row) for row in rows]}
    if differences:
        found["differences"] = [asdict(one) | {"verdict": one.verdict} for one in differences]
    failed = [_failure(one) for one in failures]
    return found | ({"failures": failed} if failed else {})


def results_jsonl(rows: Iterable[ScoreRow], failures: Iterable[Failure] = ()) -> str:
    """Give the rows as JSON Lines, with the values of every item, and what failed."""
    lines: list[dict[str, object]] = [_summary(row) | _items(row) for row in rows]
    lines += [_failure(one) | {"traceback": one.traceback} for one in failures]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def _summary(row: ScoreRow) -> dict[str, object]:
    metric = Metric(row.value, row.higher_is_better, row.n, row.unit, row.stderr, row.formula)
    bounds = interval(metric, row.items)
    return {
        "model": row.model,
        "evaluator": row.evaluator,
        "name": row.evaluation,
        "metric": row.metric,
        "value": _finite(row.value),
        "unit": row.unit,
        "stderr": row.stderr,
        "interval": bounds and [_finite(bound) for bound in bounds],
        "n": row.n,
        "unscored": len(row.unscored),
        "higher_is_better": row.higher_is_better,
    }


def _items(row: ScoreRow) -> dict[str, object]:
    unscored = {one.id: one.reason for one in row.unscored}
    return {
        "items": {
            item.id: {name: _finite(value) for name, value in item.values.items()}
            for item in row.items
        },
        "unscored": unscored,
    }


def _failure(one: Failure) -> dict[str, object]:
    return {
        "model": one.model,
        "evaluator": one.evaluator,
        "name": one.evaluation,
        "failed": one.reason,
        "item": one.item,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
