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
from mergepipe.method.blocks import Block, Cut, EachT, Scope, SharedT, Survey, Target

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

__all__ = [
    "Kernel",
    "Method",
    "install",
    "load_method",
    "load_post_step",
    "method_names",
    "post_step_names",
]

Kernel: TypeAlias = "Callable[[Block[Any, Any], Any, Out], None]"


def _accept(_each: Sequence[Any], _shared: Any) -> None:
    """Accept any combination of parameters."""


def _no_sweep(_shared: Any) -> int:
    """Say that the method reads its inputs once, to merge."""
    return 0


def _any_cut(_shared: Any, _target: Target) -> Cut:
    """Say that blocks may begin and end anywhere in a row."""
    return "anywhere"


def _always(_shared: Any) -> bool:
    """Say that the kernel takes all parameters."""
    return True


def _nothing(_shared: Any) -> frozenset[str]:
    return frozenset()


def _per_tensor(_each: Any, _shared: Any) -> None:
    """Survey every tensor by itself."""


@dataclass(frozen=True, slots=True)
class Method(Generic[EachT, SharedT]):
    """A merge method, or a post-step; the last line of its file makes one.

    `scope(each, shared)`, asked for one model, is None where the survey runs over one tensor, else
    what it depends on: the survey then runs over all tensors for which that is the same.
    `check(each, shared)` raises ValueError for parameters that are wrong only together.
    `late(shared)` names the parameters that `survey` does not look at: a search that changes these
    alone surveys a tensor once.
    A method with an `optional_base` works on task vectors where a base is named.
    `sweeps(shared)` says how often the survey reads the inputs, at most. `cut(shared, target)`
    says whether blocks hold whole rows (runs along the last dimension), whole groups of a number
    of elements, or one matrix each.
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
    cut: Callable[[SharedT, Target], Cut] = _any_cut
    kernel: Kernel | None = None
    has_kernel: Callable[[SharedT], bool] = _always
    late: Callable[[SharedT], frozenset[str]] = _nothing
    optional_base: bool = False
    against: str = ""  # the implementations its tests compare it with
    name: str = ""
    doc: str = ""

    def kernel_for(self, shared: SharedT) -> Kernel | None:
        """Give the CPU kernel for these parameters, if there is one."""
        return self.kernel if self.has_kernel(shared) else None

    def uses_base(self, *, named: bool) -> bool:
        """Whether a merge reads the base, where a base is `named` or not."""
        return self.needs_base or (self.optional_base and named)

    @property
    def summary(self) -> str:
        """The first line of the method's page."""
        return self.doc.strip().partition("\n")[0]


_installed: dict[str, Method[Any, Any]] = {}


def install(method: Method[Any, Any]) -> None:
    """Add a method for this process: one from a plugin.

    Raises
    ------
    InputError
        if there is one of that name.

    """
    known = _installed.get(method.name)
    if method.name in _names("methods") or (known is not None and known.doc != method.doc):
        raise InputError(Problem(method.name, "there is a method of this name", "rename it"))
    _installed[method.name] = method


def method_names() -> tuple[str, ...]:
    """Give the names of all methods, sorted, without importing any."""
    return tuple(sorted({*_names("methods"), *_installed}))


def post_step_names() -> tuple[str, ...]:
    """Give the names of all post-steps, sorted, without importing any."""
    return _names("post_steps")


@cache
def _names(package: str) -> tuple[str, ...]:
    folder = Path(__file__).parents[1] / package
    return tuple(sorted(found.name for found in pkgutil.iter_modules([str(folder)])))


def load_method(name: str) -> Method[Any, Any]:
    """Import the method `name`.

    Raises
    ------
    InputError
        if there is no such method; the message names the nearest.

    """
    return _installed.get(name) or _load("methods", name, method_names(), "method")


def load_post_step(name: str) -> Method[Any, Any]:
    """Import the post-step `name`: a method that is given what was merged, and the inputs.

    Raises
    ------
    InputError
        if there is no such post-step; the message names the nearest.

    """
    return _load("post_steps", name, post_step_names(), "post-step")


@cache
def _load(package: str, name: str, names: tuple[str, ...], kind: str) -> Method[Any, Any]:
    if name not in names:
        raise InputError(Problem(kind, f"unknown {kind} '{name}'{did_you_mean(name, names)}"))
    module = importlib.import_module(f"mergepipe.{package}.{name}")
    method: Method[Any, Any] = module.METHOD
    return replace(method, name=name, doc=module.__doc__ or "")
