"""What a transplant method is, and the table of them.

A method is a file in `mergepipe/transplants/`: a docstring whose first line says what it gives,
then paper and formula, and at its end::

    METHOD = TransplantMethod(Parameters, fit, needs={"donor table"})
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from mergepipe.errors import InputError, did_you_mean
from mergepipe.transplant.task import Fitted, Task

__all__ = ["Need", "Parameters", "TransplantMethod", "load_transplant", "transplant_names"]

Need: TypeAlias = Literal["donor table", "base tokenizer", "vectors", "embedder", "hypernetwork"]


class Parameters(BaseModel):
    """Parameters of a transplant method; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True)
class TransplantMethod(Generic[P]):
    """One way to make rows: `fit` looks at the whole task once, what it gives makes the rows.

    `scratch` says by the number of shared tokens how many bytes it takes beside their rows, and by
    its parameters whether it takes the model too.
    """

    parameters: type[P]
    fit: Callable[[Task, P], Fitted]
    needs: frozenset[Need] = frozenset()
    scratch: Callable[[int, P], tuple[int, bool]] = lambda _shared, _parameters: (0, False)


def transplant_names() -> tuple[str, ...]:
    """Give the names of all methods, sorted, without importing any."""
    package = importlib.import_module("mergepipe.transplants")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


@cache
def load_transplant(name: str) -> TransplantMethod[Any]:
    """Import the method of this name.

    Raises
    ------
    InputError
        if there is none.

    """
    if name not in transplant_names():
        raise InputError(
            f"unknown transplant method '{name}'{did_you_mean(name, transplant_names())}"
        )
    found: TransplantMethod[Any] = importlib.import_module(f"mergepipe.transplants.{name}").METHOD
    return found
