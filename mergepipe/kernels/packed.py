"""Blocks as they are stored: what fused kernels read and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.tiles import F32, Bytes, load

__all__ = ["Out", "Packed", "floats", "pack", "unpacked"]

Kinds: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packed:
    """The same run of elements of several tensors, each as its file holds it.

    `data` is uint8 [inputs, bytes], C-contiguous; the base, where there is one, is row 0. `kinds`
    says how to read each row: BF16, F16 or F32. The run starts at element `first` of the rows.
    """

    data: Bytes
    kinds: Kinds
    count: int  # elements
    based: bool
    first: int = 0

    def head(self, count: int) -> Packed:
        """Give the first `count` elements."""
        return replace(self, count=min(count, self.count))


@dataclass(frozen=True, slots=True)
class Out:
    """Where a kernel puts its result, rounded: uint8, as long as the block's elements need."""

    data: Bytes
    kind: int


def pack(rows: Sequence[NDArray[np.float32]], *, based: bool) -> Packed:
    """Pack fp32 arrays of one length."""
    count = rows[0].size
    data = np.empty((len(rows), 4 * count), np.uint8)
    for row, values in zip(data, rows, strict=True):
        row[:] = np.ascontiguousarray(values, np.float32).view(np.uint8)
    return Packed(data, np.full(len(rows), F32, np.int64), count, based)


def floats(values: Sequence[float]) -> NDArray[np.float32]:
    """Round numbers to fp32, as torch does with a Python number that meets an fp32 tensor."""
    with np.errstate(over="ignore"):
        return np.array(values, np.float64).astype(np.float32)


def unpacked(packed: Packed, row: int) -> NDArray[np.float32]:
    """Give a row's run in fp32."""
    out = np.empty(packed.count, np.float32)
    load(packed.data[row], int(packed.kinds[row]), packed.first, out)
    return out
