"""What a program of yours says of a model: any metric, in any language.

`run` is the program with its arguments; it works in the recipe's folder. It is given one JSON
object on its standard input,

    {"model": {"name": "merged", "path": "/models/merged"}, "parameters": {...}, "seed": 0,
     "limit": null, "part": null}

(a model behind a server has `base_url`, `model` and `kind` in place of `path`, and `key_env`, the
name of the environment variable that holds its key), and its standard output must end with one on
the last line:

    {"metrics": {"accuracy": {"value": 0.5, "higher_is_better": true, "n": 2}},
     "samples": [{"id": "1", "accuracy": 1}, {"id": "2", "accuracy": 0}]}

The first metric is the main one; a bare number is one of which higher is better. `samples` may be
left out. Where each sample has a number under the metric's name, and the metric is their mean,
models are compared sample by sample. `cluster` of a sample names what it hangs together with.

A program that ends with another status than 0, or not within `timeout` seconds, has failed; what
it leaves running is killed. Since only you know when its answers change, results are kept only if
you give a `version`. It runs with your rights, so a recipe needs `--allow-commands`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import BaseModel, Field, PositiveFloat, ValidationError

from mergepipe.errors import InputError, Problem, printable
from mergepipe.evaluate import Context, Item, Located, Metric, Result, mean
from mergepipe.evaluate.program import ProgramError, run
from mergepipe.model import Model

PERMISSION = "commands"


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`parameters` are given to the program as they are."""

    run: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    parameters: dict[str, Any] = {}
    timeout: PositiveFloat = 3600.0
    version: str | None = None


class Said(BaseModel, frozen=True, strict=True, allow_inf_nan=False):
    """A metric as the program says it."""

    value: float
    higher_is_better: bool = True
    n: int | None = None
    unit: str = ""
    stderr: float | None = None


def cached(parameters: Parameters) -> bool:
    """Tell whether a result may be used again."""
    return parameters.version is not None


def evaluate(model: Model, context: Context[Parameters]) -> Result:
    """Run the program on a model that it can load or ask itself."""
    if not isinstance(model, Located):
        what = "a program can only be given a model on the disk or behind a server"
        raise InputError(Problem(model.name, what, "write the merge first"))
    question = {
        "model": {"name": model.name, **model.location},
        "parameters": context.parameters.parameters,
        "seed": context.seed,
        "limit": context.limit,
        "part": context.part,
    }
    given, command = json.dumps(question).encode(), context.parameters
    answer = read_answer(run(command.run, given, context.folder, command.timeout))
    samples, metrics = answer.get("samples") or [], answer.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        raise ProgramError('it gave no "metrics"')
    if not isinstance(samples, list):
        raise ProgramError('its "samples" are no list')
    items = tuple(map(read_item, samples))
    found = {name: read_metric(name, said, items) for name, said in metrics.items()}
    return Result(found, items)


def read_answer(said: bytes) -> dict[str, Any]:
    """Read what the program said: one object, or one on the last line."""
    text = said.decode(errors="replace").strip()
    if not text:
        raise ProgramError("it ended without a result")
    for candidate in (text, text.splitlines()[-1]):
        with suppress(ValueError, RecursionError):
            answer = json.loads(candidate)
            if isinstance(answer, dict):
                return answer
    last = printable(text.splitlines()[-1], 100)
    raise ProgramError(f"its last line is no JSON object: {last}")


def read_item(sample: Any) -> Item:
    """Read a sample: its numbers, by name."""
    name = sample.get("id") if isinstance(sample, dict) else None
    if not isinstance(name, str | int):
        raise ProgramError(f'a sample needs an "id": {printable(json.dumps(sample), 100)}')
    cluster = sample.get("cluster")
    values = {
        name: float(value)
        for name, value in sample.items()
        if name not in {"id", "cluster"} and isinstance(value, int | float)
    }
    return Item(str(name), values, None if cluster is None else str(cluster))


def read_metric(name: str, said: Any, items: tuple[Item, ...]) -> Metric:
    """Read a metric, with the samples it is the mean of if it is that."""
    plain = said if isinstance(said, Mapping) else {"value": said}
    try:
        read = Said.model_validate(plain)
    except ValidationError as error:
        raise ProgramError(f"metric {printable(name, 60)}: {error.errors()[0]['msg']}") from error
    if items and all(name in item.values for item in items):
        found = mean(items, name, unit=read.unit, higher_is_better=read.higher_is_better)
        if math.isclose(found.value, read.value, rel_tol=1e-6, abs_tol=1e-9):
            return found
    n = len(items) if read.n is None else read.n
    return Metric(read.value, read.higher_is_better, n, read.unit, read.stderr)
