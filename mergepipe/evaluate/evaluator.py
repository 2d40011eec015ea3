"""What an evaluator is, and how one is found.

An evaluator is one file: a docstring whose first line says what it measures, a strict pydantic
model of its parameters, and one function over a model that can be asked::

    class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
        data: DataFile


    def evaluate(model: Model, parameters: Parameters) -> Result: ...

It is found by its name among the entry points of the group `mergepipe.evaluators` (each a module)
and the files shipped with mergepipe.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from mergepipe.errors import InputError, Problem, did_you_mean
from mergepipe.model import Model

__all__ = ["Evaluator", "Item", "Metric", "Result", "evaluator_names", "find_evaluator"]

_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Metric:
    """A number for all items: what it is over (`n` items), in what unit, and which way is up."""

    value: float
    higher_is_better: bool
    n: int
    unit: str


@dataclass(frozen=True, slots=True)
class Item:
    """What was measured on one item; `id` is the same for every model."""

    id: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """What an evaluator found. The first metric is the main one, shown in tables."""

    metrics: Mapping[str, Metric]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Evaluator:
    """An evaluator that was found; `parameters` is the model its parameters must fit."""

    name: str
    doc: str
    parameters: type[BaseModel]
    evaluate: Callable[[Model, Any], Result]

    @property
    def summary(self) -> str:
        """What it measures."""
        return self.doc.strip().partition("\n")[0]


def evaluator_names() -> tuple[str, ...]:
    """Give the names of all evaluators, sorted, without importing any."""
    return tuple(sorted({*_shipped(), *_installed()}))


@cache
def find_evaluator(name: str) -> Evaluator:
    """Import the evaluator of this name.

    Raises
    ------
    InputError
        if there is none, or what is found is not an evaluator.

    """
    installed, shipped = _installed(), _shipped()
    if name in installed:
        return _evaluator(name, _load_installed(installed[name]))
    if name in shipped:
        return _evaluator(name, _load_file(f"mergepipe._evaluators.{name}", shipped[name]))
    raise InputError(f"unknown evaluator '{name}'{did_you_mean(name, evaluator_names())}")


def _shipped() -> dict[str, Path]:
    """Find the shipped files: inside the package in a wheel, beside it in a checkout."""
    wheel = _PACKAGE / "_evaluators"
    folder = wheel if wheel.is_dir() else _PACKAGE.parent / "evaluators"
    return {file.stem: file for file in sorted(folder.glob("[a-z]*.py"))}


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="mergepipe.evaluators")}


def _load_installed(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise InputError(Problem(f"evaluator '{point.name}'", f"cannot load: {error}")) from error


def _load_file(module_name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None, "a .py file always has a loader"
    assert spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pydantic looks annotations up there
    spec.loader.exec_module(module)
    return module


def _evaluator(name: str, module: Any) -> Evaluator:
    doc = getattr(module, "__doc__", None)
    parameters = getattr(module, "Parameters", None)
    evaluate = getattr(module, "evaluate", None)
    if not doc or not callable(evaluate):
        what = "needs a docstring and a function `evaluate(model, parameters)`"
        raise InputError(Problem(f"evaluator '{name}'", what))
    if not (isinstance(parameters, type) and issubclass(parameters, BaseModel)):
        what = "needs a pydantic model `Parameters`"
        raise InputError(Problem(f"evaluator '{name}'", what))
    return Evaluator(name, doc, parameters, evaluate)
