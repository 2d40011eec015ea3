"""Scores as JSON: for machines without the items, in files with every one of them, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from mergepipe.evaluate.difference import Difference
from mergepipe.evaluate.result import Formula, Item, Metric, Unscored, interval
from mergepipe.evaluate.running import Failure
from mergepipe.evaluate.score import ScoreRow, Scores
from mergepipe.model import Usage

__all__ = ["read_results", "results_json", "results_jsonl"]


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
        "lossy": len(row.lossy),
        "higher_is_better": row.higher_is_better,
        "usage": asdict(row.usage),
        **({} if row.judges is None else {"judges": asdict(row.judges)}),
        "cached": row.cached,
    }


def _items(row: ScoreRow) -> dict[str, object]:
    unscored = {one.id: one.reason for one in row.unscored}
    return {
        "items": {
            item.id: {name: _finite(value) for name, value in item.values.items()}
            for item in row.items
        },
        "unscored": unscored,
        "lossy": list(row.lossy),
        "formula": None if row.formula is None else asdict(row.formula),
        "clusters": {item.id: item.cluster for item in row.items if item.cluster is not None},
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


def read_results(text: str) -> Scores:
    """Give the scores that `results_jsonl` wrote; what was no number is NaN.

    Raises
    ------
    ValueError
        naming the line that is not one of its.

    """
    found = [_read_line(number, line) for number, line in enumerate(text.splitlines(), 1)]
    return Scores(
        tuple(one for one in found if isinstance(one, ScoreRow)),
        tuple(one for one in found if isinstance(one, Failure)),
    )


def _read_line(number: int, line: str) -> ScoreRow | Failure:
    try:
        found = json.loads(line)
        return _read_failure(found) if "failed" in found else _read_row(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"line {number} is no result: {error}") from error


def _read_row(found: dict[str, Any]) -> ScoreRow:
    formula, clusters = found.get("formula"), found.get("clusters", {})
    upward, judges = found["higher_is_better"], found.get("judges")
    items = (
        Item(str(name), {key: _number(x) for key, x in values.items()}, clusters.get(name))
        for name, values in found["items"].items()
    )
    return ScoreRow(
        model=str(found["model"]),
        evaluation=str(found["name"]),
        evaluator=str(found["evaluator"]),
        metric=str(found["metric"]),
        value=_number(found["value"]),
        unit=str(found["unit"]),
        higher_is_better=None if upward is None else bool(upward),
        n=int(found["n"]),
        items=tuple(items),
        stderr=None if found["stderr"] is None else float(found["stderr"]),
        formula=None if formula is None else Formula(**formula),
        unscored=tuple(Unscored(str(one), str(why)) for one, why in found["unscored"].items()),
        lossy=tuple(map(str, found.get("lossy", ()))),
        usage=Usage(**found.get("usage", {})),
        judges=None if judges is None else Usage(**judges),
        cached=bool(found.get("cached", False)),
    )


def _read_failure(found: dict[str, Any]) -> Failure:
    return Failure(
        model=str(found["model"]),
        evaluation=str(found["name"]),
        evaluator=str(found["evaluator"]),
        reason=str(found["failed"]),
        item=None if found["item"] is None else str(found["item"]),
        traceback=str(found.get("traceback", "")),
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
