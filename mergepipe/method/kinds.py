"""A merge method as a value, and how it is found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias

from mergepipe.errors import InputError, Problem, did_you_mean
from mergepipe.method.blocks import Block, EachT, Scope, SharedT, Survey

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

__all__ = ["Kernel", "Method", "load_method", "method_names"]

Kernel: TypeAlias = "Callable[[Block[Any, Any], Any, Out], None]"


def _accept(_each: Sequence[Any], _shared: Any) -> None:
    """Accept any combination of parameters."""


def _no_sweep(_shared: Any) -> int:
    """Say that the method reads its inputs once, to merge."""
    return 0


def _any_cut(_shared: Any) -> bool:
    """Say that blocks may begin and end anywhere in a row."""
    return False


def _always(_shared: Any) -> bool:
    """Say that the kernel takes all parameters."""
    return True


def _per_tensor(_each: Any, _shared: Any) -> None:
    """Survey every tensor by itself."""


@dataclass(frozen=True, slots=True)
class Method(Generic[EachT, SharedT]):
    """A merge method; the last line of its file makes one.

    `scope(each, shared)`, asked for one model, is None where the survey runs over one tensor, else
    what it depends on: the survey then runs over all tensors for which that is the same.
    `check(each, shared)` raises ValueError for parameters that are wrong only together.
    `sweeps(shared)` says how often the survey reads the inputs, at most. With `whole_rows(shared)`
    a block holds whole rows: runs along the last dimension; a 1-D tensor is one row.
    `kernel(block, found, out)` is `merge` of a packed block, bit for bit, for those parameters for
    which there is one (`has_kernel(shared)`); what the survey measures then takes such blocks too.
    """

    each: type[EachT]
    shared: type[SharedT]
    merge: Callable[[Block[EachT, SharedT], Any], Tensor]
    needs_base: bool
    models: tuple[int, int | None]  # fewest and most models beside the base
    survey: Callable[[Scope[EachT, SharedT]], Survey] | None = None
    scope: Callable[[EachT, SharedT], Hashable | None] = _per_tensor
    check: Callable[[Sequence[EachT], SharedT], None] = _accept
    sweeps: Callable[[SharedT], int] = _no_sweep
    whole_rows: Callable[[SharedT], bool] = _any_cut
    kernel: Kernel | None = None
    has_kernel: Callable[[SharedT], bool] = _always
    name: str = ""
    doc: str = ""

    def kernel_for(self, shared: SharedT) -> Kernel | None:
        """Give the CPU kernel for these parameters, if there is one."""
        return self.kernel if self.has_kernel(shared) else None

    @property
    def summary(self) -> str:
        """The first line of the method's page."""
        return self.doc.strip().partition("\n")[0]


@cache
def method_names() -> tuple[str, ...]:
    """Give the names of all methods, sorted, without importing any."""
    folder = Path(__file__).parents[1] / "methods"
    return tuple(sorted(found.name for found in pkgutil.iter_modules([str(folder)])))


@cache
def load_method(name: str) -> Method[Any, Any]:
    """Import the method `name`.

    Raises
    ------
    InputError
        if there is no such method; the message names the nearest.

    """
    if name not in method_names():
        raise InputError(
            Problem("method", f"unknown method '{name}'{did_you_mean(name, method_names())}")
        )
    module = importlib.import_module(f"mergepipe.methods.{name}")
    method: Method[Any, Any] = module.METHOD
    return replace(method, name=name, doc=module.__doc__ or "")
