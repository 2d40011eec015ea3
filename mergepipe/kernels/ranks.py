"""Ranks of magnitudes within rows, and DELLA's pruning by them.

A row is spread over buckets by magnitude, in order of index, and each bucket, of two or three
elements as a rule, sorted by insertion: time grows with the length of the row.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel
from mergepipe.kernels.packed import Kinds, Packed, floats
from mergepipe.kernels.random import fill
from mergepipe.kernels.tiles import Bytes, Floats, Words, load, load_delta

__all__ = ["prune_rows", "rank_row"]

Short: TypeAlias = NDArray[np.uint16]
Index: TypeAlias = NDArray[np.int32]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_BUCKETS = 2048
_REACH = np.float32(5.0)  # mean magnitudes that the buckets span; larger ones share the last
_STRIDE = 8  # of the elements that the mean is taken of
_CROWD = 48  # a bucket with more elements is sorted by another way


@kernel
def rank_row(x: Floats, buckets: Short, ends: Index, order: Index) -> None:  # pragma: no cover
    """Order a row by magnitude, equal ones by index: `order` gets indices, the smallest first."""
    bits = x.view(np.uint32)
    scale = _scale(x)
    last = np.float32(_BUCKETS - 1)
    for j in range(x.size):
        place = abs(x[j]) * scale
        buckets[j] = np.uint16(np.int32(min(last, place)))
    for b in range(_BUCKETS):
        ends[b] = 0
    for j in range(x.size):
        ends[buckets[j]] += np.int32(1)
    first = np.int32(0)
    for b in range(_BUCKETS):
        count = ends[b]
        ends[b] = first
        first += count
    for j in range(x.size):
        b = buckets[j]
        order[ends[b]] = j
        ends[b] += np.int32(1)
    first = np.int32(0)
    for b in range(_BUCKETS):
        if ends[b] - first > 1:
            _sort_bucket(bits, order[first : ends[b]])
        first = ends[b]


@kernel
def _scale(x: Floats) -> Any:  # pragma: no cover
    """Buckets per unit of magnitude, from a few elements; 0, all in one, where that overflows."""
    total = np.float32(0)
    for j in range(0, x.size, _STRIDE):
        total += abs(x[j])
    mean = total / np.float32((x.size + _STRIDE - 1) // _STRIDE)
    scale = np.float32(_BUCKETS) / (_REACH * mean)
    return scale if np.isfinite(scale) else np.float32(0)


@kernel
def _sort_bucket(bits: Words, order: Index) -> None:  # pragma: no cover
    if order.size > _CROWD:
        keys = np.empty(order.size, np.int64)
        ordered = True
        for i in range(order.size):
            keys[i] = (np.int64(bits[order[i]] & _MAGNITUDE) << np.int64(32)) | order[i]
            ordered = ordered and (i == 0 or keys[i - 1] < keys[i])
        if not ordered:
            keys.sort()
            for i in range(order.size):
                order[i] = np.int32(keys[i] & np.int64(0x7FFFFFFF))
        return
    for i in range(1, order.size):
        moved = order[i]
        key = bits[moved] & _MAGNITUDE
        j = i
        while j > 0 and (bits[order[j - 1]] & _MAGNITUDE) > key:
            order[j] = order[j - 1]
            j -= 1
        order[j] = moved


@kernel
def _prune_rows(
    data: Bytes,
    kinds: Kinds,
    at: int,
    row: int,
    probabilities: NDArray[np.float64],
    ranked: bool,
    inverse: bool,
    factor: np.float32,
    key: int,
    first: int,
    out: Floats,
) -> None:  # pragma: no cover
    columns = probabilities.size
    base, room = np.empty(columns, np.float32), np.empty(columns + 8, np.uint32)
    buckets, ends = np.empty(columns, np.uint16), np.empty(_BUCKETS, np.int32)
    order = np.arange(columns).astype(np.int32)
    limits = np.floor(probabilities * 4294967296.0).astype(np.uint64)
    divisors = probabilities.astype(np.float32)
    for start in range(0, out.size, columns):
        x = out[start : start + columns]
        load(data[0], kinds[0], at + start, base)
        load_delta(data[row], kinds[row], at + start, base, x)
        if ranked:
            rank_row(x, buckets, ends, order)
        begin = fill(key, first + start, room[: ((first + start) % 4 + columns + 3) // 4 * 4])
        words = room[begin : begin + columns]
        for rank in range(columns):
            j = order[rank]
            stays = np.uint64(words[j]) < limits[rank]
            scaled = x[j] / divisors[rank] if inverse else x[j] * factor
            x[j] = scaled if stays else np.float32(0)


def prune_rows(
    packed: Packed,
    row: int,
    probabilities: NDArray[np.float64],
    *,
    factor: float | None,
    key: int,
    first: int,
) -> NDArray[np.float32]:
    """Give a model's deltas with elements dropped at random, survivors times `factor`.

    `probabilities[r]` is that of the element with rank r in its row to stay; without a factor
    survivors are divided by it.
    """
    out = np.empty(packed.count, np.float32)
    _prune_rows(
        packed.data,
        packed.kinds,
        packed.first,
        row,
        probabilities,
        bool(probabilities[0] != probabilities[-1]),
        factor is None,
        floats([1 if factor is None else factor])[0],
        np.uint64(key),
        first,
        out,
    )
    return out
