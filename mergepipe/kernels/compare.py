"""What distinguishes models, summed over a block: norms, angles, signs, changed elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mergepipe.kernels.compiling import kernel
from mergepipe.kernels.packed import Kinds, Packed
from mergepipe.kernels.sums import LANES, add_products
from mergepipe.kernels.tiles import TILE, Bytes, Floats, load, store

__all__ = ["Tally", "tally"]

Rows: TypeAlias = NDArray[np.float32]  # [tensors, elements]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_BOTH, _CONFLICT, _UNEQUAL = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over elements of a base θ_0 and n models, τ_i = θ_i − θ_0; they add up.

    Row and column 0 of `gram` are the base, the others task vectors. The counts are of pairs of
    models; on the diagonal of `both` stands in how many elements a model differs from the base.
    """

    gram: NDArray[np.float64]  # ⟨θ_0, θ_0⟩, ⟨θ_0, τ_i⟩, ⟨τ_i, τ_j⟩: [n + 1, n + 1]
    both: NDArray[np.int64]  # both differ from the base: [n, n]
    conflict: NDArray[np.int64]  # both do, in opposite directions
    unequal: NDArray[np.int64]  # the two models differ
    rounded: NDArray[np.int64]  # [n]: differ from the base in the coarser of their two dtypes

    def __add__(self, other: Self) -> Tally:
        return Tally(
            self.gram + other.gram,
            self.both + other.both,
            self.conflict + other.conflict,
            self.unequal + other.unequal,
            self.rounded + other.rounded,
        )


@kernel
def _count_unequal(x: Floats, y: Floats) -> int:  # pragma: no cover
    count: int = 0
    for j in range(x.size):
        count += x[j] != y[j]
    return count


@kernel
def _count_signs(x: Floats, y: Floats, out: NDArray[np.int64]) -> None:  # pragma: no cover
    a, b = x.view(np.uint32), y.view(np.uint32)
    both = conflict = np.int32(0)
    for j in range(x.size):
        moved = ((a[j] & _MAGNITUDE) != 0) & ((b[j] & _MAGNITUDE) != 0)
        both += np.int32(moved)
        conflict += np.int32(moved & (((a[j] ^ b[j]) >> np.uint32(31)) != 0))
    out[_BOTH] += both
    out[_CONFLICT] += conflict


@kernel
def _count_rounded(
    x: Floats, kind: int, y: Floats, other: int, stored: Bytes, room: Floats
) -> int:  # pragma: no cover
    """Count where x and y differ when rounded to the coarser dtype, which has the smaller number.

    The values of the coarser one stay as they are.
    """
    if kind < other:
        return _count_rounded_to(y, x, kind, stored, room)
    return _count_rounded_to(x, y, other, stored, room)


@kernel
def _count_rounded_to(
    fine: Floats, coarse: Floats, kind: int, stored: Bytes, room: Floats
) -> int:  # pragma: no cover
    store(fine, kind, stored, 0)
    load(stored, kind, 0, room)
    return _count_unequal(room, coarse)


@kernel
def _load_rows(
    data: Bytes, kinds: Kinds, at: int, size: int, values: Rows, rows: Rows
) -> None:  # pragma: no cover
    """Load all tensors; in `rows` the base, then task vectors."""
    for i in range(data.shape[0]):
        load(data[i], kinds[i], at, values[i][:size])
        for j in range(size):
            rows[i, j] = values[i, j] - values[0, j] if i else values[0, j]


@kernel
def _tally(
    data: Bytes, kinds: Kinds, at: int, count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover
    n, rooms = data.shape[0], np.empty((2, data.shape[0], TILE), np.float32)
    room, stored = np.empty(TILE, np.float32), np.empty(4 * TILE, np.uint8)
    lanes = np.zeros((n, n, LANES), np.float64)
    counts, rounded = np.zeros((n - 1, n - 1, 3), np.int64), np.zeros(n - 1, np.int64)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        values, rows = rooms[0], rooms[1]
        _load_rows(data, kinds, at + start, size, values, rows)
        for i in range(n):
            for k in range(i, n):
                add_products(rows[i][:size], rows[k][:size], lanes[i, k])
        for i in range(1, n):
            for k in range(i, n):
                out = counts[i - 1, k - 1]
                _count_signs(rows[i][:size], rows[k][:size], out)
                out[_UNEQUAL] += _count_unequal(values[i][:size], values[k][:size])
            rounded[i - 1] += _count_rounded(
                values[i][:size], kinds[i], values[0][:size], kinds[0], stored, room[:size]
            )
    return _total(lanes), counts, rounded


@kernel
def _total(lanes: NDArray[np.float64]) -> NDArray[np.float64]:  # pragma: no cover
    n = lanes.shape[0]
    gram = np.zeros((n, n), np.float64)
    for i in range(n):
        for k in range(i, n):
            for j in range(LANES):
                gram[i, k] += lanes[i, k, j]
            gram[k, i] = gram[i, k]
    return gram


def tally(packed: Packed) -> Tally:
    """Sum over a block whose first row is the base."""
    assert packed.based, "models are compared by what they changed in their base"
    gram, counts, rounded = _tally(packed.data, packed.kinds, packed.first, packed.count)
    counts = np.maximum(counts, counts.transpose(1, 0, 2))  # one half of each was counted
    return Tally(gram, counts[..., _BOTH], counts[..., _CONFLICT], counts[..., _UNEQUAL], rounded)
