"""Blocks of tensors, and what is measured in them before a merge."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Packed

__all__ = [
    "BLOCK",
    "Block",
    "Cut",
    "EachT",
    "Measure",
    "Parameters",
    "Role",
    "Sampled",
    "Scope",
    "SharedT",
    "Statistics",
    "Survey",
    "Target",
    "add_statistics",
    "block_ranges",
    "measure_blocks",
    "run_survey",
    "strictest",
]

BLOCK = 1 << 20  # elements; part of the definition of fp64 sums, so changing it changes bytes

Statistics: TypeAlias = Mapping[Hashable, Any]  # values that add up: arrays, numbers, ...


class Parameters(BaseModel):
    """Parameters of a method: frozen, strict, finite; unknown names are refused."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )


Role: TypeAlias = Literal["embedding", "head", "other"]  # a table of rows, the last layer, others
# How small blocks may be; a number: groups of so many elements.
Cut: TypeAlias = Literal["anywhere", "rows", "matrices"] | int


@dataclass(frozen=True, slots=True)
class Target:
    """The output tensor that a block is a run of."""

    name: str
    shape: tuple[int, ...] = ()
    role: Role = "other"

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Extent of the last dimension; 1 for a scalar."""
        return self.shape[-1] if self.shape else 1

    @property
    def matrix(self) -> tuple[int, int] | None:
        """Rows and columns of a matrix, or of each of those stacked in it; None for a vector."""
        return (self.shape[-2], self.shape[-1]) if len(self.shape) > 1 else None


EachT = TypeVar("EachT", bound=Parameters)
SharedT = TypeVar("SharedT", bound=Parameters)


@dataclass(frozen=True, slots=True)
class Block(Generic[EachT, SharedT]):
    """A run of elements of one tensor, as a method sees it: fp32, flattened.

    For a method's CPU kernel the run comes as it is stored, in `packed`; `base` and `models` are
    then empty. A post-step is also given what was merged so far.
    """

    target: Target
    start: int  # flat index of the first element
    base: Tensor | None
    models: tuple[Tensor, ...]  # those that have the tensor, in recipe order
    labels: tuple[str, ...]
    each: tuple[EachT, ...]
    shared: SharedT
    seed: int = 0
    packed: Packed | None = None
    merged: Tensor | None = None

    @property
    def tensor(self) -> str:
        """The name of the tensor."""
        return self.target.name

    @property
    def update(self) -> Tensor:
        """What was merged so far, less the base: what a post-step works on."""
        assert self.merged is not None, "only post-steps come after a merge"
        assert self.base is not None, "a post-step needs a base"
        return self.merged - self.base

    def head(self, count: int) -> Self:
        """Give the block's first `count` elements."""
        return replace(
            self,
            base=None if self.base is None else self.base[:count],
            models=tuple(model[:count] for model in self.models),
            packed=None if self.packed is None else self.packed.head(count),
            merged=None if self.merged is None else self.merged[:count],
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
    targets: tuple[Target, ...] = ()


def block_ranges(
    target: Target, cut: Cut = "anywhere", block: int = BLOCK
) -> Iterator[tuple[int, int]]:
    """Give start and stop of each block of a tensor; one without elements is one empty block.

    A block cut at `rows` holds whole runs along the last dimension, one cut at `matrices` one
    matrix; a vector is one row, and cut as such. One cut at a number starts at a multiple of it.
    """
    unit = _unit(cut, target)
    one = cut == "matrices" and target.matrix is not None
    step = unit if one else max(block // unit, 1) * unit
    for start in range(0, max(target.numel, 1), step):
        yield start, min(start + step, target.numel)


def _unit(cut: Cut, target: Target) -> int:
    """Elements of which blocks hold whole multiples."""
    if isinstance(cut, int):
        return cut
    if cut == "matrices" and target.matrix is not None:
        return max(math.prod(target.matrix), 1)
    return 1 if cut == "anywhere" else max(target.columns, 1)


def strictest(cuts: Iterable[Cut], target: Target) -> Cut:
    """Give the cut that does for all of these; where blocks are matrices, groups end with them."""
    asked = tuple(cuts)
    if "matrices" in asked:
        return "matrices"
    if any(isinstance(cut, int) for cut in asked):
        return math.lcm(*(_unit(cut, target) for cut in asked))
    return "rows" if "rows" in asked else "anywhere"


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
