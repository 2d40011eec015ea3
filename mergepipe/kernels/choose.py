"""Merges that choose for each element: the largest change, what several models changed, the near.

Every operation is the definition's, on fp32, in its order, so the bits are the same.
"""

# ruff: noqa: FURB136 -- max and min of NaN would depend on their order
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel
from mergepipe.kernels.fused import add_tile
from mergepipe.kernels.packed import Kinds, Out, Packed, floats
from mergepipe.kernels.tiles import TILE, Bytes, Floats, load, load_delta, store

__all__ = ["add_active", "add_agreed", "add_largest", "count_active", "move_near"]


@kernel
def _add_largest(
    data: Bytes, kinds: Kinds, at: int, count: int, scale: np.float32, out: Bytes, out_kind: int
) -> None:  # pragma: no cover
    rooms = np.empty((3, TILE), np.float32)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x, largest = rooms[0][:size], rooms[1][:size], rooms[2][:size]
        load(data[0], kinds[0], at + start, base)
        load_delta(data[1], kinds[1], at + start, base, largest)
        for i in range(2, data.shape[0]):
            load(data[i], kinds[i], at + start, x)
            for j in range(size):
                delta = x[j] - base[j]
                largest[j] = delta if abs(delta) >= abs(largest[j]) else largest[j]
        add_tile(base, largest, scale)
        store(largest, out_kind, out, start)


def add_largest(packed: Packed, scale: float, out: Out) -> None:
    """θ_0 + λ τ_i of the model whose |τ_i| is largest, the last of those."""
    _add_largest(
        packed.data,
        packed.kinds,
        packed.first,
        packed.count,
        floats([scale])[0],
        out.data,
        out.kind,
    )


@kernel
def _add_active(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    epsilon: np.float32,
    factors: Floats,
    out: Bytes,
    out_kind: int,
) -> None:  # pragma: no cover
    rooms = np.empty((5, TILE), np.float32)
    zero, one = np.float32(0), np.float32(1)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x, total = rooms[0][:size], rooms[1][:size], rooms[2][:size]
        alone, active = rooms[3][:size], rooms[4][:size]
        load(data[0], kinds[0], at + start, base)
        for j in range(size):
            total[j] = zero
            alone[j] = zero
            active[j] = zero
        for i in range(factors.size):
            load(data[i + 1], kinds[i + 1], at + start, x)
            factor = factors[i]
            for j in range(size):
                delta = x[j] - base[j]
                changed = abs(delta) > epsilon
                total[j] = total[j] + (delta if changed else zero)
                alone[j] = alone[j] + (delta * factor if changed else zero)
                active[j] = active[j] + (one if changed else zero)
        for j in range(size):
            mean = total[j] / active[j]
            total[j] = mean if active[j] > one else alone[j]
        add_tile(base, total, one)
        store(total, out_kind, out, start)


def add_active(packed: Packed, epsilon: float, factors: Sequence[float], out: Out) -> None:
    """Add the mean of what several models changed, and what only one did times its factor."""
    _add_active(
        packed.data,
        packed.kinds,
        packed.first,
        packed.count,
        floats([epsilon])[0],
        floats(factors),
        out.data,
        out.kind,
    )


@kernel
def _count_active(
    data: Bytes, kinds: Kinds, at: int, count: int, epsilon: np.float32
) -> NDArray[np.int64]:  # pragma: no cover
    models = data.shape[0] - 1
    rooms, masks = np.empty((2, TILE), np.float32), np.empty((models + 1, TILE), np.uint32)
    out = np.zeros((models, 2), np.int64)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x, active = rooms[0][:size], rooms[1][:size], masks[models][:size]
        load(data[0], kinds[0], at + start, base)
        for j in range(size):
            active[j] = np.uint32(0)
        for i in range(models):
            mask = masks[i][:size]
            load(data[i + 1], kinds[i + 1], at + start, x)
            for j in range(size):
                mask[j] = np.uint32(abs(x[j] - base[j]) > epsilon)
                active[j] = np.uint32(active[j] + mask[j])
        for i in range(models):
            mask, several, alone = masks[i][:size], np.uint32(0), np.uint32(0)
            for j in range(size):
                several = np.uint32(several + (mask[j] & np.uint32(active[j] > np.uint32(1))))
                alone = np.uint32(alone + (mask[j] & np.uint32(active[j] == np.uint32(1))))
            out[i, 0] += several
            out[i, 1] += alone
    return out


def count_active(packed: Packed, epsilon: float) -> NDArray[np.int64]:
    """Count each model's elements that several models changed, and that it alone did."""
    return _count_active(
        packed.data, packed.kinds, packed.first, packed.count, floats([epsilon])[0]
    )


@kernel
def _add_agreed(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    shares: Floats,
    fewest: int,
    scale: np.float32,
    out: Bytes,
    out_kind: int,
) -> None:  # pragma: no cover
    models = shares.size
    rooms, counts = np.empty((models + 2, TILE), np.float32), np.empty(TILE, np.uint32)
    least = np.uint32(fewest)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, total, votes = rooms[models][:size], rooms[models + 1][:size], counts[:size]
        load(data[0], kinds[0], at + start, base)
        load_delta(data[1], kinds[1], at + start, base, rooms[0][:size])
        for j in range(size):
            total[j] = rooms[0, j]
            votes[j] = np.uint32(0)
        for i in range(1, models):
            x = rooms[i][:size]
            load_delta(data[i + 1], kinds[i + 1], at + start, base, x)
            for j in range(size):
                total[j] = total[j] + x[j]
        for i in range(models):
            x, share = rooms[i][:size], shares[i]
            for j in range(size):
                holds = abs(x[j]) > share * abs(total[j] - x[j])
                votes[j] = np.uint32(votes[j] + np.uint32(holds))
        for j in range(size):
            total[j] = total[j] if votes[j] >= least else np.float32(0)
        add_tile(base, total, scale)
        store(total, out_kind, out, start)


def add_agreed(
    packed: Packed, shares: Sequence[float], fewest: int, scale: float, out: Out
) -> None:
    """θ_0 + λ Σ_i τ_i where at least `fewest` |τ_i| exceed their share of the others' sum."""
    _add_agreed(
        packed.data,
        packed.kinds,
        packed.first,
        packed.count,
        floats(shares),
        min(fewest, len(shares) + 1),
        floats([scale])[0],
        out.data,
        out.kind,
    )


@kernel
def _move_near(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    low: np.float32,
    high: np.float32,
    out: Bytes,
    out_kind: int,
) -> None:  # pragma: no cover
    rooms = np.empty((2, TILE), np.float32)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x = rooms[0][:size], rooms[1][:size]
        load(data[0], kinds[0], at + start, base)
        load(data[1], kinds[1], at + start, x)
        for j in range(size):
            delta = x[j] - base[j]
            step = low if delta < low else delta
            step = high if step > high else step
            moved = x[j] if abs(delta) <= high else base[j] + step
            x[j] = base[j] if delta == np.float32(0) else moved
        store(x, out_kind, out, start)


def move_near(packed: Packed, t: float, out: Out) -> None:
    """θ_1 where it is at most t away, else θ_0 ± t."""
    low, high = floats([-t, t])
    _move_near(packed.data, packed.kinds, packed.first, packed.count, low, high, out.data, out.kind)
