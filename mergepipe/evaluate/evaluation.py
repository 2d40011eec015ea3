"""An entry of `evaluate:`, checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mergepipe.errors import InputError, Problems, did_you_mean, printable
from mergepipe.evaluate.context import Split
from mergepipe.evaluate.evaluator import Evaluator, find_evaluator

__all__ = ["MAX_ERROR_RATE", "Evaluation", "parse_evaluation", "refuse_unallowed"]

MAX_ERROR_RATE = 0.02


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluator with its parameters, under the name that results are reported under.

    `folder` is what its paths are relative to. At most `limit` items are scored; `split` divides
    them; above `max_error_rate` of items that could not be scored there is no result.
    """

    name: str
    evaluator: Evaluator
    parameters: BaseModel
    folder: Path = Path()
    limit: int | None = None
    split: Split | None = None
    max_error_rate: float = MAX_ERROR_RATE


def parse_evaluation(
    use: str,
    parameters: Mapping[str, Any],
    *,
    name: str,
    base_dir: Path,
    where: str,
    problems: Problems,
    limit: int | None = None,
    split: Split | None = None,
    max_error_rate: float = MAX_ERROR_RATE,
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
        return Evaluation(name, evaluator, checked, base_dir, limit, split, max_error_rate)
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


def refuse_unallowed(evaluations: Iterable[Evaluation], allowed: Collection[str]) -> None:
    """Refuse evaluations that the user must allow: a recipe may come from anybody.

    Raises
    ------
    InputError
        naming each, and the option that allows it.

    """
    problems = Problems()
    for evaluation in evaluations:
        permission = evaluation.evaluator.permission
        if permission is not None and permission not in allowed:
            what = f"{evaluation.evaluator.name} runs programs that others may have written"
            fix = f"give --allow-{permission} if you trust them"
            problems.add(f"evaluation '{evaluation.name}'", what, fix)
    problems.raise_any()
