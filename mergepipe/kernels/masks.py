"""Merges by masks in one pass: the largest with the elected sign, averages of what is kept, n of m.

Every operation is the definition's, on fp32, in its order, so the bits are the same.
"""

# ruff: noqa: FURB136 -- max and min of NaN would depend on their order
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel
from mergepipe.kernels.fused import Band, add_tile, as_rows, is_plain, trim_and_weigh, trim_tile
from mergepipe.kernels.packed import Kinds, Out, Packed, floats
from mergepipe.kernels.sums import LANES, add_products
from mergepipe.kernels.tiles import TILE, Bytes, Floats, load, load_delta, store

__all__ = ["NO_TASK", "add_balanced", "add_unified", "stitch", "task_magnitudes"]

NO_TASK = -1
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_OCTAVES = 1 << 25  # four: the density of normal numbers' magnitudes, near a quarter from the top
_PART = 32
_NAN = np.uint32(0x7F800001)  # every NaN counts as this one, above infinity


@kernel
def _unify(
    data: Bytes, kinds: Kinds, at: int, base: Floats, rooms: NDArray[np.float32], up: Floats
) -> None:  # pragma: no cover
    """Give τ_u of a tile, in `up`: of the elements with the sum's sign the largest."""
    size = base.size
    x, total, down = rooms[0][:size], rooms[1][:size], rooms[2][:size]
    for j in range(size):
        total[j] = np.float32(0)
        up[j] = np.float32(0)
        down[j] = np.float32(0)
    for i in range(1, data.shape[0]):
        load(data[i], kinds[i], at, x)
        for j in range(size):
            delta, most, least = x[j] - base[j], up[j], down[j]
            total[j] = total[j] + delta
            up[j] = delta if delta > most else most
            down[j] = delta if delta < least else least
    for j in range(size):
        most, least = up[j], down[j]
        up[j] = most if total[j] > np.float32(0) else least


@kernel
def _mask(unified: Floats, delta: Floats) -> None:  # pragma: no cover
    """Set to 0 what has not the sign of `delta`."""
    zero = np.float32(0)
    for j in range(unified.size):
        u, x = unified[j], delta[j]
        agrees = ((u > zero) & (x > zero)) | ((u < zero) & (x < zero))
        unified[j] = u if agrees else zero


@kernel
def _add_unified(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    task: int,
    scale: np.float32,
    out: Bytes,
    out_kind: int,
) -> None:  # pragma: no cover
    rooms = np.empty((5, TILE), np.float32)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x, unified = rooms[4][:size], rooms[0][:size], rooms[3][:size]
        load(data[0], kinds[0], at + start, base)
        _unify(data, kinds, at + start, base, rooms, unified)
        if task > 0:
            load_delta(data[task], kinds[task], at + start, base, x)
            _mask(unified, x)
        add_tile(base, unified, scale)
        store(unified, out_kind, out, start)


def add_unified(packed: Packed, task: int, scale: float, out: Out) -> None:
    """θ_0 + τ_u, or θ_0 + λ M_i ⊙ τ_u where `task` is a model's row."""
    _add_unified(
        packed.data,
        packed.kinds,
        packed.first,
        packed.count,
        task,
        floats([scale])[0],
        out.data,
        out.kind,
    )


@kernel
def _add_magnitudes(
    x: Floats, ones: Floats, lanes: NDArray[np.float64]
) -> None:  # pragma: no cover
    for j in range(x.size):
        x[j] = abs(x[j])
    add_products(x, ones, lanes)


@kernel
def _task_magnitudes(
    data: Bytes, kinds: Kinds, at: int, count: int, task: int
) -> NDArray[np.float64]:  # pragma: no cover
    rooms, ones = np.empty((5, TILE), np.float32), np.ones(TILE, np.float32)
    lanes = np.zeros((2, LANES), np.float64)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x, unified = rooms[4][:size], rooms[0][:size], rooms[3][:size]
        load(data[0], kinds[0], at + start, base)
        _unify(data, kinds, at + start, base, rooms, unified)
        load_delta(data[task], kinds[task], at + start, base, x)
        _mask(unified, x)
        _add_magnitudes(x, ones[:size], lanes[0])
        _add_magnitudes(unified, ones[:size], lanes[1])
    return lanes


def task_magnitudes(packed: Packed, task: int) -> tuple[float, float]:
    """Σ|τ_i| and Σ|M_i ⊙ τ_u| of the model in a row."""
    lanes = _task_magnitudes(packed.data, packed.kinds, packed.first, packed.count, task)
    return math.fsum(lanes[0]), math.fsum(lanes[1])


@kernel
def _stitch(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    bands: NDArray[np.int64],
    out: Bytes,
    out_kind: int,
) -> None:  # pragma: no cover
    models = bands.shape[0]
    rooms, seen = np.empty((4, TILE), np.float32), np.zeros((models, 2), np.int64)
    zero, one = np.float32(0), np.float32(1)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x = rooms[0][:size], rooms[1][:size]
        total, shares = rooms[2][:size], rooms[3][:size]
        load(data[0], kinds[0], at + start, base)
        for j in range(size):
            total[j] = zero
            shares[j] = zero
        for i in range(models):
            load(data[i + 1], kinds[i + 1], at + start, x)
            if is_plain(bands[i]):
                trim_and_weigh(x, base, bands[i], one, total)
            else:
                for j in range(size):
                    x[j] = x[j] - base[j]
                trim_tile(x, bands[i], seen[i])
                for j in range(size):
                    total[j] = total[j] + x[j]
            for j in range(size):
                shares[j] = shares[j] + (one if x[j] != zero else zero)
        for j in range(size):
            total[j] = total[j] / max(shares[j], one)
        add_tile(base, total, one)
        store(total, out_kind, out, start)


def stitch(packed: Packed, bands: Sequence[Band], out: Out) -> None:
    """θ_0 + the mean of what the bands keep of each task vector; θ_0 where there are no bands."""
    rows = as_rows(bands)
    _stitch(packed.data, packed.kinds, packed.first, packed.count, rows, out.data, out.kind)


@kernel
def _threshold(
    keys: NDArray[np.uint32], count: int, guess: int
) -> tuple[int, int]:  # pragma: no cover
    """Give the `count`-th largest key, and how many of those equal to it may stay.

    Each pass counts the keys from a guess on, and moves a bound to the key next to it. The next
    guess supposes that the keys lie as those of normal numbers do; every third halves the range.
    """
    low, high, above = np.int64(0), np.int64(_NAN) + 1, 0  # `above`: how many are ≥ high
    step, passes = np.int64(_OCTAVES) // keys.size, 0
    while high - low > 1:
        middle = np.uint32(min(max(guess, low + 1), high - 1))
        found, least, most = np.uint32(0), np.uint32(0xFFFFFFFF), np.uint32(0)
        for j in range(keys.size):
            key = keys[j]
            inside = key >= middle
            found = np.uint32(found + np.uint32(inside))
            least = min(least, key if inside else np.uint32(0xFFFFFFFF))
            most = max(most, np.uint32(0) if inside else key)
        excess = np.int64(found) - count
        if excess == 0:
            return int(least), keys.size
        if excess > 0:
            low = np.int64(least)
            guess = low + 1 + (excess - 1) * step
        else:
            high, above = np.int64(most) + 1, np.int64(found)
            guess = high - 1 + (excess + 1) * step
        passes += 1
        if passes % 3 == 0:
            guess = (low + high) // 2
    return int(low), count - above


@kernel
def _position(keys: NDArray[np.uint32], value: np.uint32, quota: int) -> int:  # pragma: no cover
    """Give how many keys it takes to have `quota` that equal the value."""
    first = 0
    while quota > 0:
        part, found = keys[first : first + _PART], np.uint32(0)
        for j in range(part.size):
            found = np.uint32(found + np.uint32(part[j] == value))
        if found <= quota:
            quota -= int(found)
            first += part.size
            continue
        for j in range(part.size):
            quota -= int(part[j] == value)
            if quota == 0:
                return first + j + 1
    return first


@kernel
def _keep_count(
    x: Floats, keys: NDArray[np.uint32], count: int, guess: int
) -> int:  # pragma: no cover
    """Set to 0 all but the `count` largest magnitudes; the first of equal ones stay.

    Gives the smallest that stays, as a guess for the next group.
    """
    if count >= x.size:
        return guess
    if count == 0:
        for j in range(x.size):
            x[j] = np.float32(0)
        return guess
    bits = x.view(np.uint32)
    for j in range(x.size):
        keys[j] = min(np.uint32(bits[j] & _MAGNITUDE), _NAN)
    lowest, quota = _threshold(keys, count, guess)
    threshold = np.uint32(lowest)
    if quota >= x.size:
        for j in range(x.size):
            x[j] = x[j] if keys[j] >= threshold else np.float32(0)
        return lowest
    cut = _position(keys, threshold, quota)
    upper, above, lower, below = x[:cut], keys[:cut], x[cut:], keys[cut : x.size]
    for j in range(cut):
        upper[j] = upper[j] if above[j] >= threshold else np.float32(0)
    for j in range(lower.size):
        lower[j] = lower[j] if below[j] > threshold else np.float32(0)
    return lowest


@kernel
def _add_balanced(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    n: int,
    m: int,
    weights: Floats,
    scale: np.float32,
    out: Bytes,
    out_kind: int,
) -> None:  # pragma: no cover
    tile = max(TILE // m, 1) * m
    rooms, room = np.empty((4, min(tile, count)), np.float32), np.empty(min(m, count), np.uint32)
    guesses, zero, one = np.zeros(data.shape[0], np.int64), np.float32(0), np.float32(1)
    for start in range(0, count, tile):
        size = min(tile, count - start)
        base, x = rooms[0][:size], rooms[1][:size]
        total, free = rooms[2][:size], rooms[3][:size]
        load(data[0], kinds[0], at + start, base)
        for j in range(size):
            total[j] = zero
            free[j] = one
        for i in range(1, data.shape[0]):
            load(data[i], kinds[i], at + start, x)
            for j in range(size):
                delta = x[j] - base[j]
                x[j] = delta if free[j] != zero else zero
            for first in range(0, size, m):
                group = x[first : min(first + m, size)]
                most = (n * group.size + m - 1) // m
                guesses[i] = _keep_count(group, room[: group.size], most, guesses[i])
            w = weights[i - 1]
            for j in range(size):
                kept, still = x[j], free[j]
                free[j] = still if kept == zero else zero
                total[j] = total[j] + kept * w
        add_tile(base, total, scale)
        store(total, out_kind, out, start)


def add_balanced(
    packed: Packed, n: int, m: int, weights: Sequence[float], scale: float, out: Out
) -> None:
    """θ_0 + λ Σ_i w_i τ̂_i, each the n largest of every m elements that those before left over."""
    _add_balanced(
        packed.data,
        packed.kinds,
        packed.first,
        packed.count,
        n,
        m,
        floats(weights),
        floats([scale])[0],
        out.data,
        out.kind,
    )
