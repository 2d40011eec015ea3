"""What an evaluator is, and how one is found.

An evaluator is one file: a docstring whose first line says what it measures, a strict pydantic
model of its parameters, and one function over a model that can be asked::

    class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
        data: DataFile


    def evaluate(model: Model, context: Context[Parameters]) -> Result: ...

It may also say `NEEDS`, what a model must be able to do; `VERSION`, a number that is raised when
its results change for a reason that is not in its file; `PERMISSION`, what the user must allow;
and `cached(parameters)`, whether a result may be kept and used again.

It is found by its name among the files that the user named by `--plugin`, the entry points of the
group `mergepipe.evaluators` (each a module), and the files shipped with mergepipe.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import BaseModel

from mergepipe.errors import InputError, Problem, did_you_mean, printable
from mergepipe.evaluate.context import Context
from mergepipe.evaluate.result import Result
from mergepipe.model import Ability, Model

__all__ = [
    "Evaluator",
    "evaluator_names",
    "find_evaluator",
    "install_evaluator",
    "is_evaluator",
]

_PACKAGE = Path(__file__).parent.parent
_PLUGINS: dict[str, ModuleType] = {}  # by the name of the file; grows while plugins are loaded
PERMISSIONS = ("commands",)


@dataclass(frozen=True, slots=True)
class Evaluator:
    """An evaluator that was found; `parameters` is the model its parameters must fit.

    `digest` is that of its source; empty where there is none, and then nothing is cached.
    `permission` is what the user must allow by `--allow-PERMISSION`.
    """

    name: str
    doc: str
    parameters: type[BaseModel]
    evaluate: Callable[[Model, Context[Any]], Result]
    needs: frozenset[Ability] = frozenset()
    version: int = 1
    digest: str = ""
    permission: str | None = None
    cached: Callable[[Any], bool] | None = None

    @property
    def summary(self) -> str:
        """What it measures."""
        return self.doc.strip().partition("\n")[0]


def evaluator_names() -> tuple[str, ...]:
    """Give the names of all evaluators, sorted, without importing any."""
    return tuple(sorted({*_shipped(), *_installed(), *_PLUGINS}))


@cache
def find_evaluator(name: str) -> Evaluator:
    """Import the evaluator of this name.

    Raises
    ------
    InputError
        if there is none, or what is found is not an evaluator.

    """
    installed, shipped = _installed(), _shipped()
    if name in _PLUGINS:
        return _evaluator(name, _PLUGINS[name])
    if name in installed:
        return _evaluator(name, _load_installed(installed[name]))
    if name in shipped:
        return _evaluator(name, _load_file(f"mergepipe._evaluators.{name}", shipped[name]))
    raise InputError(f"unknown evaluator '{name}'{did_you_mean(name, evaluator_names())}")


def is_evaluator(module: ModuleType) -> bool:
    """Tell whether a plugin's module means to be an evaluator."""
    return hasattr(module, "evaluate") and hasattr(module, "Parameters")


def install_evaluator(name: str, module: ModuleType) -> None:
    """Let an evaluator be found by this name.

    Raises
    ------
    InputError
        if the module is no evaluator, or the name is that of another.

    """
    if name in {*_shipped(), *_installed()}:
        what = "is the name of an evaluator that is there already"
        raise InputError(Problem(f"evaluator '{name}'", what, "rename the file"))
    _evaluator(name, module)
    _PLUGINS[name] = module
    find_evaluator.cache_clear()


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
    except Exception as error:  # whatever the package's code raises
        what = f"cannot load: {printable(error, 300)}"
        raise InputError(Problem(f"evaluator '{point.name}'", what)) from error


def _load_file(module_name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None, "a .py file always has a loader"
    assert spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pydantic looks annotations up there
    spec.loader.exec_module(module)
    return module


def _evaluator(name: str, module: Any) -> Evaluator:
    doc: Any = getattr(module, "__doc__", None)
    parameters: Any = getattr(module, "Parameters", None)
    evaluate: Any = getattr(module, "evaluate", None)
    needs: Any = getattr(module, "NEEDS", frozenset())
    version = getattr(module, "VERSION", 1)
    permission = getattr(module, "PERMISSION", None)
    faults = {
        "a docstring and a function `evaluate(model, context)`": not doc or not callable(evaluate),
        "a pydantic model `Parameters`": not _is_model(parameters),
        f"`NEEDS`, if any, as a set of {', '.join(get_args(Ability))}": not _are_abilities(needs),
        "`VERSION`, if any, as a whole number": type(version) is not int,
        f"`PERMISSION`, if any, as one of {', '.join(PERMISSIONS)}": permission
        not in {None, *PERMISSIONS},
    }
    for what, is_fault in faults.items():
        if is_fault:
            raise InputError(Problem(f"evaluator '{name}'", f"needs {what}"))
    return Evaluator(
        name,
        str(doc),
        parameters,
        evaluate,
        frozenset(needs),
        version,
        _digest(module),
        permission,
        getattr(module, "cached", None),
    )


def _is_model(parameters: object) -> bool:
    return isinstance(parameters, type) and issubclass(parameters, BaseModel)


def _are_abilities(needs: object) -> bool:
    return isinstance(needs, set | frozenset) and needs <= set(get_args(Ability))


def _digest(module: Any) -> str:
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
