"""Evaluations, checked before any model is loaded; the scores of models on them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mergepipe.errors import InputError, Problems, did_you_mean, printable
from mergepipe.evaluate.evaluator import Evaluator, Item, find_evaluator
from mergepipe.model import Model

__all__ = ["Evaluation", "ScoreRow", "parse_evaluation", "results_jsonl", "score"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluator with its parameters, under the name that results are reported under."""

    name: str
    evaluator: Evaluator
    parameters: BaseModel


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One metric of one model on one evaluation; the main metric's row comes first."""

    model: str
    evaluation: str
    evaluator: str
    metric: str
    value: float
    unit: str
    higher_is_better: bool
    n: int
    items: tuple[Item, ...]


def parse_evaluation(
    use: str,
    parameters: Mapping[str, Any],
    *,
    name: str,
    base_dir: Path,
    where: str,
    problems: Problems,
) -> Evaluation | None:
    """Check an entry of `evaluate:`; what is wrong becomes problems, and the answer None.

    Paths are relative to `base_dir`. Data files are read, so that a fault in line 7 is known now.
    """
    try:
        evaluator = find_evaluator(use)
        checked = evaluator.parameters.model_validate(
            dict(parameters), context={"base_dir": base_dir}
        )
    except ValidationError as error:
        for item in error.errors(include_url=False):
            problems.add(where, f"{use}: {_fault(item, evaluator.parameters)}")
    except InputError as error:
        for problem in error.problems:
            problems.add(problem.where or where, problem.what, problem.fix)
    else:
        return Evaluation(name, evaluator, checked)
    return None


def _fault(item: Any, parameters: type[BaseModel]) -> str:
    """Say what pydantic found in the field's words."""
    field = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"unknown parameter '{field}'{did_you_mean(field, parameters.model_fields)}"
    if item["type"] == "missing":
        return f"parameter '{field}' is missing"
    if item["type"] == "value_error":
        return f"{field}: {item['ctx']['error']}" if field else str(item["ctx"]["error"])
    message = item["msg"].replace("Input should be", "must be")
    return f"{field}: {message}, got {printable(repr(item['input']), 60)}"


def score(models: Iterable[Model], evaluations: Sequence[Evaluation]) -> tuple[ScoreRow, ...]:
    """Score each model on each evaluation, model by model: only one need be in memory.

    Raises
    ------
    InputError
        if two evaluations, or two models, have one name.

    """
    for name, count in Counter(evaluation.name for evaluation in evaluations).items():
        if count > 1:
            raise InputError(f"two evaluations are named '{name}' (give each its own `name`)")
    rows: dict[str, list[ScoreRow]] = {}
    for model in models:
        if model.name in rows:
            raise InputError(f"two models are named '{model.name}'")
        rows[model.name] = [row for evaluation in evaluations for row in _rows(model, evaluation)]
    return tuple(row for of_model in rows.values() for row in of_model)


def _rows(model: Model, evaluation: Evaluation) -> Iterator[ScoreRow]:
    result = evaluation.evaluator.evaluate(model, evaluation.parameters)
    for name, metric in result.metrics.items():
        yield ScoreRow(
            model=model.name,
            evaluation=evaluation.name,
            evaluator=evaluation.evaluator.name,
            metric=name,
            value=metric.value,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            n=metric.n,
            items=result.items,
        )


def results_jsonl(rows: Iterable[ScoreRow]) -> str:
    """Give the rows as JSON Lines, with the values of every item; NaN and infinity become null."""
    return "".join(json.dumps(_plain(row), allow_nan=False) + "\n" for row in rows)


def _plain(row: ScoreRow) -> dict[str, object]:
    return {
        "model": row.model,
        "evaluation": row.evaluation,
        "evaluator": row.evaluator,
        "metric": row.metric,
        "value": _finite(row.value),
        "unit": row.unit,
        "higher_is_better": row.higher_is_better,
        "n": row.n,
        "items": {
            item.id: {name: _finite(value) for name, value in item.values.items()}
            for item in row.items
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
