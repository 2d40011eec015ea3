"""fp64 sums of every column or row of packed matrices, and task vectors weighted by them.

Both sums are trees of a fixed shape, so that torch can add up in the same order: columns in groups
of `GROUP` rows, those in groups again, each from its first to its last; rows by halves, the second
added to the first.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel
from mergepipe.kernels.fused import add_tile
from mergepipe.kernels.packed import Kinds, Out, Packed
from mergepipe.kernels.tiles import TILE, Bytes, Floats, load, store

__all__ = ["GROUP", "add_by_score", "column_sums", "row_sums"]

Doubles: TypeAlias = NDArray[np.float64]

GROUP = 16
_WIDTH = 1024  # columns that are summed side by side: their sums stay in the cache


def column_sums(packed: Packed, first: int, matrix: tuple[int, int], *, changes: bool) -> Doubles:
    """Sums over the rows of each matrix that a block has rows of: [matrices, sums, columns].

    The sums are Σ θ_0², Σ θ_i² of each model, Σ θ_i θ_0 of each and, if asked for, how many
    elements of each are not the base's. The block begins at row `first` of the stacked matrices.
    """
    height, width = max(matrix[0], 1), matrix[1]
    rows, levels = packed.count // max(width, 1), 1
    while GROUP ** (levels - 1) < rows:
        levels += 1
    return _column_sums(
        packed.data, packed.kinds, packed.first, rows, width, first, height, levels, changes
    )


def row_sums(packed: Packed, columns: int, *, changes: bool) -> Doubles:
    """Give the same sums of each row of a block: [sums, rows]."""
    rows = packed.count // max(columns, 1)
    return _row_sums(packed.data, packed.kinds, packed.first, rows, columns, changes)


@kernel
def _add_products(
    data: Bytes,
    kinds: Kinds,
    at: int,
    size: int,
    rooms: NDArray[np.float32],
    changes: bool,
    sums: Doubles,
) -> None:  # pragma: no cover
    """Add the products of `size` elements of a row to the sums of their columns."""
    models = data.shape[0] - 1
    base, x, total = rooms[0][:size], rooms[1][:size], sums[0][:size]
    load(data[0], kinds[0], at, base)
    for j in range(base.size):
        total[j] += np.float64(base[j]) * np.float64(base[j])
    for i in range(models):
        squares, products = sums[1 + i][:size], sums[1 + models + i][:size]
        load(data[i + 1], kinds[i + 1], at, x)
        for j in range(base.size):
            value = np.float64(x[j])
            squares[j] += value * value
            products[j] += value * np.float64(base[j])
        if changes:
            changed = sums[1 + 2 * models + i][:size]
            for j in range(base.size):
                changed[j] += np.float64(x[j] != base[j])


@kernel
def _carry(sums: NDArray[np.float64], level: int) -> None:  # pragma: no cover
    """Add a level's sums to the next, and begin the level anew."""
    for q in range(sums.shape[1]):
        here, above = sums[level, q], sums[level + 1, q]
        for j in range(here.size):
            above[j] += here[j]
            here[j] = 0.0


@kernel
def _column_sums(
    data: Bytes,
    kinds: Kinds,
    at: int,
    rows: int,
    columns: int,
    first: int,
    height: int,
    levels: int,
    changes: bool,
) -> Doubles:  # pragma: no cover
    models = data.shape[0] - 1
    count = 1 + (3 if changes else 2) * models
    start = first // height
    stop = max((first + rows + height - 1) // height, start + 1)
    out = np.zeros((stop - start, count, columns), np.float64)
    width = max(min(_WIDTH, columns), 1)
    sums, rooms = np.empty((levels, count, width), np.float64), np.empty((2, width), np.float32)
    for number in range(start, stop):
        top, bottom = max(number * height - first, 0), min((number + 1) * height - first, rows)
        for left in range(0, columns, width):
            size = min(width, columns - left)
            sums[:] = 0.0
            for row in range(top, bottom):
                place = at + row * columns + left
                _add_products(data, kinds, place, size, rooms, changes, sums[0])
                done, level = row - top + 1, 0
                while done % GROUP == 0 and level + 1 < levels:
                    _carry(sums, level)
                    done //= GROUP
                    level += 1
            for level in range(levels - 1):
                _carry(sums, level)
            out[number - start, :, left : left + size] = sums[levels - 1, :, :size]
    return out


@kernel
def _folded(values: Doubles) -> float:  # pragma: no cover
    """Add the second half to the first, until one is left."""
    size = values.size
    while size > 1:
        half = (size + 1) // 2
        lower, upper = values[:half], values[half:size]
        for j in range(upper.size):
            lower[j] += upper[j]
        size = half
    return values[0] if size else 0.0


@kernel
def _row_sums(
    data: Bytes, kinds: Kinds, at: int, rows: int, columns: int, changes: bool
) -> Doubles:  # pragma: no cover
    models = data.shape[0] - 1
    count = 1 + (3 if changes else 2) * models
    out = np.zeros((count, rows), np.float64)
    sums, rooms = np.empty((count, columns), np.float64), np.empty((2, columns), np.float32)
    for row in range(rows):
        sums[:] = 0.0
        _add_products(data, kinds, at + row * columns, columns, rooms, changes, sums)
        for q in range(count):
            out[q, row] = _folded(sums[q])
    return out


def add_by_score(
    packed: Packed,
    scores: NDArray[np.float32],
    start: int,
    matrix: tuple[int, int],
    *,
    by_row: bool,
    out: Out,
) -> None:
    """θ_0 + Σ_i s_i τ_i, with a score for each column of each matrix, or for each row.

    `scores` is [matrices, models, columns], or [1, models, rows]; the block begins at element
    `start` of the tensor.
    """
    _add_by_score(
        packed.data,
        packed.kinds,
        packed.first,
        packed.count,
        scores,
        start,
        max(matrix[0], 1),
        matrix[1],
        by_row,
        out.data,
        out.kind,
    )


@kernel
def _score_tile(
    scores: NDArray[np.float32],
    model: int,
    at: int,
    height: int,
    width: int,
    by_row: bool,
    out: Floats,
) -> None:  # pragma: no cover
    """Give the score of each element from `at` on."""
    filled = 0
    while filled < out.size:
        row, column = (at + filled) // width, (at + filled) % width
        size = min(width - column, out.size - filled)
        part = out[filled : filled + size]
        if by_row:
            part[:] = scores[0, model, row]
        else:
            part[:] = scores[row // height, model, column : column + size]
        filled += size


@kernel
def _add_by_score(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    scores: NDArray[np.float32],
    first: int,
    height: int,
    width: int,
    by_row: bool,
    out: Bytes,
    out_kind: int,
) -> None:  # pragma: no cover
    rooms = np.empty((4, TILE), np.float32)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x = rooms[0][:size], rooms[1][:size]
        score, total = rooms[2][:size], rooms[3][:size]
        load(data[0], kinds[0], at + start, base)
        total[:] = np.float32(0)
        for i in range(data.shape[0] - 1):
            load(data[i + 1], kinds[i + 1], at + start, x)
            _score_tile(scores, i, first + start, height, width, by_row, score)
            for j in range(size):
                total[j] = total[j] + (x[j] - base[j]) * score[j]
        add_tile(base, total, np.float32(1))
        store(total, out_kind, out, start)
