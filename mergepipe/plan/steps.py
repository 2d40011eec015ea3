"""One output tensor: its inputs, its method call, and why it is so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mergepipe.checkpoint import DTYPES, Checkpoint, Stored
from mergepipe.method import (
    BLOCK,
    Cut,
    Method,
    Parameters,
    Role,
    Target,
    load_method,
    load_post_step,
    strictest,
)

__all__ = ["Call", "Dropped", "Input", "Step"]

_WORKSPACE = 12  # fp64 matrices that a decomposition holds at once, about


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor of a model, by the name it has there."""

    label: str
    checkpoint: Checkpoint
    name: str

    @property
    def stored(self) -> Stored:
        """Where its bytes are."""
        return self.checkpoint.tensors[self.name]


@dataclass(frozen=True, slots=True)
class Call:
    """A method or a post-step with its parameters for one tensor."""

    method: Method[Any, Any]
    each: tuple[Parameters, ...]
    shared: Parameters


@dataclass(frozen=True, slots=True)
class Step:
    """How one output tensor is made. Without a method, `inputs[0]` is copied."""

    name: str
    dtype: str  # of the output, as safetensors names it
    shape: tuple[int, ...]
    method: str | None
    base: Input | None
    inputs: tuple[Input, ...]
    each: tuple[Parameters, ...]
    shared: Parameters | None
    rule: int | None  # index into the merge's `where`
    depth: float
    reason: str
    role: Role = "other"
    then: tuple[tuple[str, Parameters], ...] = ()  # post-steps in order

    @property
    def target(self) -> Target:
        """The tensor as methods see it."""
        return Target(self.name, self.shape, self.role)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The method's call and those of the post-steps; none for a copy."""
        if self.method is None or self.shared is None:
            return ()
        posts = [(load_post_step(name), shared) for name, shared in self.then]
        return (
            Call(load_method(self.method), self.each, self.shared),
            *(Call(post, tuple(post.each() for _ in self.inputs), v) for post, v in posts),
        )

    @property
    def cut(self) -> Cut:
        """How small its blocks may be."""
        target = self.target
        return strictest((call.method.cut(call.shared, target) for call in self.calls), target)

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Extent of the last dimension; 1 for a scalar."""
        return self.shape[-1] if self.shape else 1

    @property
    def all_inputs(self) -> tuple[Input, ...]:
        """The base, where the method uses one, then the models."""
        return (self.base, *self.inputs) if self.base is not None else self.inputs

    @property
    def sweeps(self) -> int:
        """How often the inputs are read, at most: surveys, and once to merge."""
        # A post-step's survey reads all inputs again, to merge them first.
        return 1 + sum(call.method.sweeps(call.shared) for call in self.calls)

    @property
    def bytes_read(self) -> int:
        """Bytes read for this tensor, at most."""
        # Of an input with more rows only the first ones are read.
        sizes = (DTYPES[one.stored.dtype].itemsize for one in self.all_inputs)
        return self.sweeps * self.numel * sum(sizes)

    @property
    def working_bytes(self) -> int:
        """Memory that one worker needs for this tensor, at least: a block of inputs and result."""
        wide = max(DTYPES[one.stored.dtype].itemsize for one in self.all_inputs)
        if self.method is None or self.shared is None:
            return 2 * wide * min(self.numel, BLOCK)
        rows, cut = len(self.all_inputs), self.cut
        bytes_each = (rows + 1) * max(wide, 4)
        # Copies of rows that are ranked; in torch, of everything, and temporaries.
        if cut == "rows" or isinstance(cut, int):
            bytes_each += 8 * (rows + 2)
        if cut == "matrices":
            bytes_each += 8 * (2 * rows + _WORKSPACE)
        if self.then or load_method(self.method).kernel_for(self.shared) is None:
            bytes_each += 4 * (2 * rows + 4)
        return bytes_each * self.block

    @property
    def block(self) -> int:
        """Elements of its largest block."""
        cut = self.cut
        if cut == "matrices" and self.target.matrix is not None:
            return min(self.numel, math.prod(self.target.matrix))
        least = cut if isinstance(cut, int) else 1 if cut == "anywhere" else self.columns
        return min(self.numel, max(BLOCK, least))


@dataclass(frozen=True, slots=True)
class Dropped:
    """A tensor of an input that is not in the output, and why."""

    label: str
    name: str
    reason: str
