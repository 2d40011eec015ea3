"""One output tensor: its inputs, its method call, and why it is so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mergepipe.checkpoint import DTYPES, Checkpoint, Stored
from mergepipe.method import BLOCK, Parameters, load_method

__all__ = ["Dropped", "Input", "Step"]


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
        if self.method is None:
            return 1
        method: Any = load_method(self.method)
        return 1 + int(method.sweeps(self.shared))

    @property
    def bytes_read(self) -> int:
        """Bytes read for this tensor, at most."""
        return self.sweeps * sum(one.stored.nbytes for one in self.all_inputs)

    @property
    def working_bytes(self) -> int:
        """Memory that one worker needs for this tensor, at least: a block of inputs and result."""
        wide = max(DTYPES[one.stored.dtype].itemsize for one in self.all_inputs)
        if self.method is None:
            return 2 * wide * min(self.numel, BLOCK)
        method: Any = load_method(self.method)
        block = BLOCK
        if method.whole_rows(self.shared):
            block = max(BLOCK, self.columns)
        rows = len(self.all_inputs)
        bytes_each = (rows + 1) * max(wide, 4)
        # Copies of rows that are ranked; in torch, of everything, and temporaries.
        if method.whole_rows(self.shared):
            bytes_each += 8 * (rows + 2)
        if method.kernel_for(self.shared) is None:
            bytes_each += 4 * (2 * rows + 4)
        return bytes_each * min(self.numel, block)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A tensor of an input that is not in the output, and why."""

    label: str
    name: str
    reason: str
