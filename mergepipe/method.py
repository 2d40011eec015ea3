"""What a merge method is, and how one is found.

A method is one file in `mergepipe/methods/`: a docstring (authors, formula, a worked example), two
parameter models, and a pure function over same-named tensors. It sees *blocks*: a run of elements
of one tensor, fp32, flattened, the same run of the base and of every model that has the tensor.
A tensor larger than `BLOCK` elements comes as several blocks, at fixed boundaries, so that results
never depend on memory or threads.

Some formulas need numbers of the whole tensor, or of the whole model, first: a norm, the k-th
largest magnitude. Such a method has a *survey*, a generator. It yields what to measure in one
block; measurements are arrays that add up; it is sent their sum over its scope; what it returns is
handed to `merge`::

    def survey(scope):
        norms = yield squared_norm       # {label: sum over all blocks}
        return {label: math.sqrt(norms[label]) for label in scope.each}
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

from mergepipe.errors import InputError, Problem, Problems, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out, Packed

__all__ = [
    "BLOCK",
    "Block",
    "Kernel",
    "Measure",
    "Method",
    "Parameters",
    "Sampled",
    "Scope",
    "Statistics",
    "Survey",
    "add_statistics",
    "apply",
    "block_ranges",
    "load_method",
    "measure_blocks",
    "method_names",
    "run_survey",
]

BLOCK = 1 << 20  # elements; part of the definition of fp64 sums, so changing it changes bytes

Statistics: TypeAlias = Mapping[Hashable, Any]  # values that add up: arrays, numbers, ...


class Parameters(BaseModel):
    """Parameters of a method: frozen, strict, finite; unknown names are refused."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )


EachT = TypeVar("EachT", bound=Parameters)
SharedT = TypeVar("SharedT", bound=Parameters)


@dataclass(frozen=True, slots=True)
class Block(Generic[EachT, SharedT]):
    """A run of elements of one tensor, as a method sees it: fp32, flattened.

    For a method's CPU kernel the run comes as it is stored, in `packed`; `base` and `models` are
    then empty.
    """

    tensor: str
    start: int  # flat index of the first element
    base: Tensor | None
    models: tuple[Tensor, ...]  # those that have the tensor, in recipe order
    labels: tuple[str, ...]
    each: tuple[EachT, ...]
    shared: SharedT
    seed: int = 0
    columns: int = 1  # extent of the tensor's last dimension
    packed: Packed | None = None

    def head(self, count: int) -> Self:
        """Give the block's first `count` elements."""
        return replace(
            self,
            base=None if self.base is None else self.base[:count],
            models=tuple(model[:count] for model in self.models),
            packed=None if self.packed is None else self.packed.head(count),
        )

    def row(self, label: str) -> int:
        """Give the row of a model in a packed block."""
        assert self.packed is not None, "only packed blocks have rows"
        return self.labels.index(label) + int(self.packed.based)

    @property
    def first(self) -> Tensor:
        """The base, or the first model where there is no base."""
        return self.models[0] if self.base is None else self.base

    @property
    def deltas(self) -> tuple[Tensor, ...]:
        """The task vectors τ_i = θ_i − θ_0 of this block."""
        assert self.base is not None, "only methods that need a base ask for deltas"
        return tuple(model - self.base for model in self.models)


Measure: TypeAlias = Callable[[Block[Any, Any]], Statistics]
Kernel: TypeAlias = "Callable[[Block[Any, Any], Any, Out], None]"


@dataclass(frozen=True, slots=True)
class Sampled:
    """A measurement of a share of each block, its first elements, so that little is read."""

    measure: Measure
    share: float  # in (0, 1]

    def count(self, size: int) -> int:
        """How many elements of a block of `size` it needs."""
        return min(size, math.ceil(size * self.share))

    def __call__(self, block: Block[Any, Any]) -> Statistics:
        """Measure a block that was cut."""
        return self.measure(block)


Survey: TypeAlias = Generator[Measure, Statistics, Any]


@dataclass(frozen=True, slots=True)
class Scope(Generic[EachT, SharedT]):
    """What a survey runs over: one tensor, or all tensors merged with the same parameters."""

    sizes: Mapping[str, int]  # label -> number of elements the model has in the scope
    each: Mapping[str, EachT]
    shared: SharedT


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


def block_ranges(
    numel: int, columns: int, *, whole_rows: bool, block: int = BLOCK
) -> Iterator[tuple[int, int]]:
    """Give start and stop of each block of a tensor; one without elements is one empty block."""
    step = max(block // columns, 1) * columns if whole_rows and columns else block
    for start in range(0, max(numel, 1), step):
        yield start, min(start + step, numel)


@cache
def method_names() -> tuple[str, ...]:
    """Give the names of all methods, sorted, without importing any."""
    folder = Path(__file__).parent / "methods"
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


def add_statistics(parts: Iterable[Statistics]) -> Statistics:
    """Add measurements up, key by key, in the order given."""
    total: dict[Hashable, Any] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total[key] + value if key in total else value
    return total


def measure_blocks(
    measure: Measure, blocks: Iterable[Block[EachT, SharedT]]
) -> Iterator[Statistics]:
    """Measure blocks that are in memory, or the share of each that is asked for."""
    for block in blocks:
        size = block.first.numel() if block.packed is None else block.packed.count
        cut = block.head(measure.count(size)) if isinstance(measure, Sampled) else block
        yield measure(cut)


def run_survey(survey: Survey, measure_all: Callable[[Measure], Statistics]) -> Any:
    """Drive a survey to its end; `measure_all` sums a measurement over the scope."""
    try:
        measure = next(survey)
        while True:
            measure = survey.send(measure_all(measure))
    except StopIteration as stop:
        return stop.value


def apply(
    name: str,
    base: Tensor | None,
    models: Mapping[str, Tensor],
    each: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    tensor: str = "tensor",
    seed: int = 0,
    block: int = BLOCK,
    **shared: Any,
) -> Tensor:
    """Merge one tensor: the definition of every method, in memory.

    `base` and `models` have one shape and any float dtype; the result has that shape, fp32.
    `each` gives per-model parameters by label, keywords are shared parameters (`lambda` as
    `lambda_`).

    >>> import torch
    >>> base, a, b = torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0])
    >>> apply("task_arithmetic", base, {"a": a, "b": b}, lambda_=0.5)
    tensor([ 2., -1.])

    Raises
    ------
    InputError
        if the method takes another number of models or needs a base, a label in `each` is not
        in `models`, or shapes differ.

    """
    import torch

    method = load_method(name)
    each = each or {}
    _check_call(method, base, models, each)
    labels = tuple(models)
    chosen = {label: method.each(**each.get(label, {})) for label in labels}
    common = method.shared(**shared)
    method.check(tuple(chosen.values()), common)
    flat = [models[label].to(torch.float32).flatten() for label in labels]
    origin = None if base is None else base.to(torch.float32).flatten()
    first = flat[0] if origin is None else origin
    shape = next(iter(models.values())).shape
    columns = shape[-1] if shape else 1
    blocks = [
        Block(
            tensor=tensor,
            start=start,
            base=None if origin is None else origin[start:stop],
            models=tuple(model[start:stop] for model in flat),
            labels=labels,
            each=tuple(chosen.values()),
            shared=common,
            seed=seed,
            columns=columns,
        )
        for start, stop in block_ranges(
            first.numel(), columns, whole_rows=method.whole_rows(common), block=block
        )
    ]
    found = None
    if method.survey is not None:
        scope = Scope(dict.fromkeys(labels, first.numel()), chosen, common)
        found = run_survey(
            method.survey(scope), lambda measure: add_statistics(measure_blocks(measure, blocks))
        )
    merged = torch.cat([method.merge(part, found) for part in blocks])
    return merged.reshape(shape)


def _check_call(
    method: Method[Any, Any],
    base: Tensor | None,
    models: Mapping[str, Tensor],
    each: Mapping[str, object],
) -> None:
    problems = Problems()
    fewest, most = method.models
    if len(models) < fewest or (most is not None and len(models) > most):
        takes = f"at least {fewest}" if most is None else f"{fewest} to {most}"
        problems.add(method.name, f"takes {takes} models beside the base, got {len(models)}")
    if method.needs_base and base is None:
        problems.add(method.name, "needs a base")
    for label in each:
        if label not in models:
            problems.add(method.name, f"unknown model '{label}'{did_you_mean(label, models)}")
    inputs = models.values() if base is None else (base, *models.values())
    shapes = tuple(dict.fromkeys(tuple(one.shape) for one in inputs))
    if len(shapes) > 1:
        problems.add(method.name, f"tensors of different shapes: {', '.join(map(str, shapes))}")
    problems.raise_any()
