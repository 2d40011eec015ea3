"""fp64 sums over a block, in a fixed order: lanes that a vector unit adds side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel
from mergepipe.kernels.fused import Band, Draw, as_rows, drop_tile, mask_tile, trim_tile
from mergepipe.kernels.packed import Kinds, Packed
from mergepipe.kernels.select import load_deltas, variance_tile
from mergepipe.kernels.tiles import TILE, Bytes, Floats, load, load_delta

__all__ = [
    "LANES",
    "absolute_sum",
    "absolute_sums",
    "add_products",
    "inner_products",
    "products",
    "square_sums",
]

LANES = 64


@kernel
def add_products(x: Floats, y: Floats, lanes: NDArray[np.float64]) -> None:  # pragma: no cover
    """Add Σ x·y up in as many lanes as there are."""
    whole = x.size // LANES * LANES
    for first in range(0, whole, LANES):
        a, b = x[first : first + LANES], y[first : first + LANES]
        for j in range(LANES):
            lanes[j] += np.float64(a[j]) * np.float64(b[j])
    for j in range(x.size - whole):
        lanes[j] += np.float64(x[whole + j]) * np.float64(y[whole + j])


@kernel
def _add_absolute(x: Floats, lanes: NDArray[np.float64]) -> None:  # pragma: no cover
    whole = x.size // LANES * LANES
    for first in range(0, whole, LANES):
        a = x[first : first + LANES]
        for j in range(LANES):
            lanes[j] += np.float64(abs(a[j]))
    for j in range(x.size - whole):
        lanes[j] += np.float64(abs(x[whole + j]))


@kernel
def _products(
    data: Bytes, kinds: Kinds, at: int, count: int
) -> NDArray[np.float64]:  # pragma: no cover
    rooms = np.empty((2, TILE), np.float32)
    lanes = np.zeros((3, LANES), np.float64)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        x, y = rooms[0][:size], rooms[1][:size]
        load(data[0], kinds[0], at + start, x)
        load(data[1], kinds[1], at + start, y)
        add_products(x, x, lanes[0])
        add_products(y, y, lanes[1])
        add_products(x, y, lanes[2])
    return _total(lanes)


@kernel
def _total(lanes: NDArray[np.float64]) -> NDArray[np.float64]:  # pragma: no cover
    total = np.zeros(lanes.shape[0], np.float64)
    for i in range(lanes.shape[0]):
        for j in range(LANES):
            total[i] += lanes[i, j]
    return total


def products(packed: Packed) -> NDArray[np.float64]:
    """⟨a, a⟩, ⟨b, b⟩ and ⟨a, b⟩ of the first two rows."""
    return _products(packed.data, packed.kinds, packed.first, packed.count)


@kernel
def _absolute_sums(
    data: Bytes, kinds: Kinds, at: int, count: int, row: int, key: int, limit: int, first: int
) -> NDArray[np.float64]:  # pragma: no cover
    rooms, room = np.empty((2, TILE), np.float32), np.empty(TILE + 8, np.uint32)
    lanes = np.zeros((2, LANES), np.float64)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x = rooms[0][:size], rooms[1][:size]
        load(data[0], kinds[0], at + start, base)
        load_delta(data[row], kinds[row], at + start, base, x)
        _add_absolute(x, lanes[0])
        drop_tile(x, key, limit, first + start, room)
        _add_absolute(x, lanes[1])
    return _total(lanes)


def absolute_sums(packed: Packed, row: int, draw: Draw, first: int) -> NDArray[np.float64]:
    """Σ|τ| of one model, of all elements and of those that a random mask keeps."""
    return _absolute_sums(
        packed.data,
        packed.kinds,
        packed.first,
        packed.count,
        row,
        np.uint64(draw.key),
        draw.limit,
        first,
    )


@kernel
def _absolute_sum(values: Floats) -> NDArray[np.float64]:  # pragma: no cover
    lanes = np.zeros((1, LANES), np.float64)
    _add_absolute(values, lanes[0])
    return _total(lanes)


def absolute_sum(values: Floats) -> float:
    """Σ|x| of fp32 values."""
    return float(_absolute_sum(values)[0])


@kernel
def _square_sums(
    data: Bytes, kinds: Kinds, at: int, count: int, selection: NDArray[np.int64]
) -> NDArray[np.float64]:  # pragma: no cover
    models = data.shape[0] - 1
    rooms, deltas = np.empty((3, TILE), np.float32), np.empty((models, TILE), np.float32)
    lanes = np.zeros((models, LANES), np.float64)
    seen = np.zeros(2, np.int64)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, mean, chosen = rooms[0][:size], rooms[1][:size], rooms[2][:size]
        load(data[0], kinds[0], at + start, base)
        load_deltas(data, kinds, at + start, base, deltas)
        if selection.shape[0] > 0:
            variance_tile(deltas, models, mean, chosen)
            trim_tile(chosen, selection[0], seen)
            mask_tile(deltas, models, chosen)
        for i in range(models):
            add_products(deltas[i][:size], deltas[i][:size], lanes[i])
    return _total(lanes)


def square_sums(packed: Packed, select: Band | None) -> NDArray[np.float64]:
    """Σ τ_i² of each model, over the elements whose variance lies in the band, or over all."""
    selection = as_rows([] if select is None else [select])
    return _square_sums(packed.data, packed.kinds, packed.first, packed.count, selection)


@kernel
def _inner_products(
    data: Bytes, kinds: Kinds, at: int, count: int, based: int
) -> NDArray[np.float64]:  # pragma: no cover
    models = data.shape[0] - based
    rows, room = np.empty((models, TILE), np.float32), np.zeros(TILE, np.float32)
    lanes = np.zeros((models * (models + 1) // 2, LANES), np.float64)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base = room[:size]
        if based:
            load(data[0], kinds[0], at + start, base)
        for i in range(models):
            load(data[based + i], kinds[based + i], at + start, rows[i][:size])
            if based:
                for j in range(size):
                    rows[i, j] = rows[i, j] - base[j]
        pair = 0
        for i in range(models):
            for j in range(i, models):
                add_products(rows[i][:size], rows[j][:size], lanes[pair])
                pair += 1
    return _total(lanes)


def inner_products(packed: Packed) -> NDArray[np.float64]:
    """⟨x_i, x_j⟩ of all models, i ≤ j, row by row; of their task vectors where there is a base."""
    return _inner_products(packed.data, packed.kinds, packed.first, packed.count, int(packed.based))
