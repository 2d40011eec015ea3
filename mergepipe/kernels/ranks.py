"""Ranks of magnitudes within rows, DELLA's pruning by them, and bands of ranks.

A row is spread over buckets by magnitude, in order of index, and each bucket, of two or three
elements as a rule, sorted by insertion: time grows with the length of the row.

Whether an element stays is known from its random word and the ranks that its bucket spans, but for
one or two elements of a row. So where survivors are not divided by their own probability, only the
buckets of those are sorted.
"""

# ruff: noqa: C901 -- a kernel is one loop nest
from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel
from mergepipe.kernels.packed import Kinds, Packed, floats
from mergepipe.kernels.random import fill
from mergepipe.kernels.tiles import Bytes, Floats, Words, load, load_delta

__all__ = ["band_rows", "prune_rows", "rank_row"]

Short: TypeAlias = NDArray[np.uint16]
Index: TypeAlias = NDArray[np.int32]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_BUCKETS = 2048
_FEW_BUCKETS = 512  # where most of them are never sorted
_REACH = np.float32(5.0)  # mean magnitudes that the buckets span; larger ones share the last
_STRIDE = 8  # of the elements that the mean is taken of
_MARK = np.uint32(0xFFFFFFFF)
_MOST_COUNTED = 128  # undecided elements of a row; more are sorted
_CHUNK = 32
_CROWD = 48  # a bucket with more elements is sorted by another way


@kernel
def rank_row(x: Floats, buckets: Short, ends: Index, order: Index) -> None:  # pragma: no cover
    """Order a row by magnitude, equal ones by index: `order` gets indices, the smallest first."""
    bits = x.view(np.uint32)
    _spread(x, buckets, ends)
    first = np.int32(0)
    for b in range(ends.size):
        count = ends[b]
        ends[b] = first
        first += count
    for j in range(x.size):
        b = buckets[j]
        order[ends[b]] = j
        ends[b] += np.int32(1)
    first = np.int32(0)
    for b in range(ends.size):
        if ends[b] - first > 1:
            _sort_bucket(bits, order[first : ends[b]])
        first = ends[b]


@kernel
def _spread(x: Floats, buckets: Short, counts: Index) -> None:  # pragma: no cover
    """Say in which bucket each element is, and how many each bucket has."""
    scale = _scale(x, counts.size)
    last = np.float32(counts.size - 1)
    for j in range(x.size):
        place = abs(x[j]) * scale
        buckets[j] = np.uint16(np.int32(min(last, place)))
    for b in range(counts.size):
        counts[b] = 0
    for j in range(x.size):
        counts[buckets[j]] += np.int32(1)


@kernel
def _scale(x: Floats, buckets: int) -> Any:  # pragma: no cover
    """Buckets per unit of magnitude, from a few elements; 0, all in one, where that overflows."""
    total = np.float32(0)
    for j in range(0, x.size, _STRIDE):
        total += abs(x[j])
    mean = total / np.float32((x.size + _STRIDE - 1) // _STRIDE)
    scale = np.float32(buckets) / (_REACH * mean)
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
def _thin_row(
    x: Floats,
    words: Words,
    limits: Words,
    factor: np.float32,
    buckets: Short,
    starts: Index,
    order: Index,
    ends: NDArray[np.uint32],
    low: Words,
    out: Floats,
) -> None:  # pragma: no cover
    """Put the elements whose word is below the limit of their rank, times `factor`, into `out`.

    `limits[r + 1]` is that of rank r; they grow, with one more at each end. A word below the
    limit of a bucket's first rank is below all of them, and one not below that of its last rank is
    below none. Elements that are 0 stay 0 either way.
    """
    _spread(x, buckets, starts)
    sure, possible = ends[0], ends[1]
    reach = np.uint32(_bounds(starts, limits, sure, possible))
    for j in range(x.size):
        low[j] = sure[buckets[j]]
    for j in range(x.size):
        out[j] = x[j] * factor if words[j] < low[j] else np.float32(0)
    near = 0
    for start in range(0, x.size, _CHUNK):
        stop = min(start + _CHUNK, x.size)
        w, least = words[start:stop], low[start:stop]
        found = np.uint32(0)
        for j in range(w.size):
            found = np.uint32(found | np.uint32(np.uint32(w[j] - least[j]) < reach))
        if found:
            for j in range(w.size):
                order[near] = np.int32(start + j)
                near += np.int64(np.uint32(w[j] - least[j]) < reach)
    undecided = 0
    for i in range(near):
        j = order[i]
        if (words[j] < possible[buckets[j]]) & (x[j] != np.float32(0)):
            order[undecided] = j
            undecided += 1
    if undecided > _MOST_COUNTED:
        for i in range(undecided):
            possible[buckets[order[i]]] = _MARK
        _thin_marked(x, words, limits, factor, buckets, starts, order, possible, out)
        return
    bits = x.view(np.uint32)
    for i in range(undecided):
        j = order[i]
        if words[j] < limits[_rank(bits, j) + 1]:
            out[j] = x[j] * factor


@kernel
def _bounds(starts: Index, limits: Words, sure: Words, possible: Words) -> int:  # pragma: no cover
    """Turn the buckets' sizes into their first ranks; give the widest range of limits in one."""
    first, widest = 0, 0
    for b in range(starts.size):
        count = starts[b]
        starts[b] = np.int32(first)
        least = limits[first + 1]
        first += count
        most = limits[first]
        sure[b] = least
        possible[b] = most
        widest = max(widest, np.int64(most) - np.int64(least))  # below 0 where it is empty
    return widest


@kernel
def _rank(bits: Words, j: int) -> int:  # pragma: no cover
    """How many magnitudes are smaller than element j's, or equal and before it."""
    own = bits[j] & _MAGNITUDE
    smaller = np.uint32(0)
    before, after = bits[:j], bits[j + 1 :]
    for i in range(before.size):
        smaller = np.uint32(smaller + np.uint32((before[i] & _MAGNITUDE) <= own))
    for i in range(after.size):
        smaller = np.uint32(smaller + np.uint32((after[i] & _MAGNITUDE) < own))
    return int(smaller)


@kernel
def _thin_marked(
    x: Floats,
    words: Words,
    limits: Words,
    factor: np.float32,
    buckets: Short,
    starts: Index,
    order: Index,
    marks: Words,
    out: Floats,
) -> None:  # pragma: no cover
    """Decide by their ranks about the elements of the buckets that are marked."""
    bits, ends = x.view(np.uint32), starts.copy()
    for j in range(x.size):
        b = buckets[j]
        if marks[b] == _MARK:
            order[ends[b]] = np.int32(j)
            ends[b] += np.int32(1)
    for b in range(starts.size):
        if marks[b] != _MARK:
            continue
        _sort_bucket(bits, order[starts[b] : ends[b]])
        for rank in range(starts[b], ends[b]):
            j = order[rank]
            out[j] = x[j] * factor if words[j] < limits[rank + 1] else np.float32(0)


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


@kernel
def _thin_rows(
    data: Bytes,
    kinds: Kinds,
    at: int,
    row: int,
    probabilities: NDArray[np.float64],
    factor: np.float32,
    key: int,
    first: int,
    out: Floats,
) -> None:  # pragma: no cover
    """Multiply survivors by one factor."""
    columns = probabilities.size
    base, x = np.empty(columns, np.float32), np.empty(columns, np.float32)
    room, buckets = np.empty(columns + 8, np.uint32), np.empty(columns, np.uint16)
    starts, order = np.empty(_FEW_BUCKETS, np.int32), np.empty(columns, np.int32)
    ends, low = np.empty((2, _FEW_BUCKETS), np.uint32), np.empty(columns, np.uint32)
    limits = np.zeros(columns + 2, np.uint32)
    limits[1:-1] = np.floor(probabilities * 4294967296.0).astype(np.uint32)
    limits[-1] = limits[-2]
    for start in range(0, out.size, columns):
        load(data[0], kinds[0], at + start, base)
        load_delta(data[row], kinds[row], at + start, base, x)
        begin = fill(key, first + start, room[: ((first + start) % 4 + columns + 3) // 4 * 4])
        words = room[begin : begin + columns]
        _thin_row(
            x,
            words,
            limits,
            factor,
            buckets,
            starts,
            order,
            ends,
            low,
            out[start : start + columns],
        )


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
    where = (packed.data, packed.kinds, packed.first, row, probabilities)
    ranked, by = bool(probabilities[0] != probabilities[-1]), 1.0 if factor is None else factor
    drawn = (floats([by])[0], np.uint64(key), first, out)
    if ranked and factor is not None:
        _thin_rows(*where, *drawn)
    else:
        _prune_rows(*where, ranked, factor is None, *drawn)
    return out


@kernel
def _band_rows(
    data: Bytes, kinds: Kinds, at: int, row: int, top: int, stop: int, out: NDArray[np.float32]
) -> None:  # pragma: no cover
    columns = out.shape[1]
    rooms = np.empty((3, columns), np.float32)
    base, x, turned = rooms[0], rooms[1], rooms[2]
    buckets, ends = np.empty(columns, np.uint16), np.empty(_BUCKETS, np.int32)
    order = np.empty(columns, np.int32)
    for number in range(out.shape[0]):
        start, kept = at + number * columns, out[number]
        load(data[0], kinds[0], start, base)
        load_delta(data[row], kinds[row], start, base, x)
        for j in range(columns):
            turned[j] = x[columns - 1 - j]  # so that of equal ones the first comes out last
            kept[j] = np.float32(0)
        rank_row(turned, buckets, ends, order)
        for place in range(top, stop):
            j = columns - 1 - order[columns - 1 - place]
            kept[j] = x[j]


def band_rows(
    packed: Packed, row: int, columns: int, *, top: int, stay: int
) -> NDArray[np.float32]:
    """Give a model's deltas, 0 but for `stay` of each row's largest after its `top` largest ones.

    Of equal magnitudes the first is the larger.
    """
    out = np.empty((packed.count // columns, columns), np.float32)
    stop = min(top + stay, columns)
    _band_rows(packed.data, packed.kinds, packed.first, row, top, stop, out)
    return out.reshape(-1)
