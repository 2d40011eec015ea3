"""The k-th largest magnitude of a stream, exactly, without sorting it.

fp32 magnitudes order like their bit patterns. A sample of the stream brackets the one sought; one
sweep counts what lies above the bracket and collects the few that lie inside. Where the sample
misled, two sweeps of histograms, of the upper and then the lower 16 bits, always succeed. Counts
and collections of parts add up, so a whole model can be swept in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel
from mergepipe.kernels.packed import Kinds, Packed
from mergepipe.kernels.tiles import TILE, Bytes, Floats, Words, load, load_delta

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "HIGH_BINS",
    "LOW_BINS",
    "Bracket",
    "Inside",
    "bracket",
    "collect",
    "collect_torch",
    "count_equal",
    "count_high",
    "count_high_torch",
    "count_low",
    "count_low_torch",
    "expected_inside",
    "load_deltas",
    "locate",
    "magnitude_bits",
    "magnitudes",
    "variance_tile",
    "within",
]

Counts: TypeAlias = NDArray[np.int64]
HIGH_BINS = 1 << 15
LOW_BINS = 1 << 16
LARGEST = (1 << 31) - 1
_SIGMAS = 3.0  # half the width of a bracket, in standard deviations of a sample's rank
_ROOM = 8  # of a block's elements one in so many may lie inside a bracket
_GROUP = 32
_MAGNITUDE = np.uint32(LARGEST)


@dataclass(frozen=True, slots=True)
class Bracket:
    """Bit patterns between which a magnitude is sought, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Inside:
    """How a part of a stream lies about a bracket.

    `inside` holds the patterns strictly between the ends, in any order; it is not complete where
    `overflowed`.
    """

    above: int
    at_high: int
    at_low: int
    inside: Words
    overflowed: bool

    def count(self, known: Bracket, value: int) -> int:
        """How many equal a value that is not outside the bracket."""
        if value == known.high:
            return self.at_high
        if value == known.low:
            return self.at_low
        return int(np.count_nonzero(self.inside == value))


def bracket(sample: Words, rank: int, size: int) -> Bracket:
    """Guess between which values the `rank`-th largest of `size` lies, from a sample of them."""
    count = sample.size
    share = rank / size
    slack = _SIGMAS * math.sqrt(count * share * (1 - share)) + 2
    low, high = math.ceil(count - share * count - slack), math.floor(count - share * count + slack)
    wanted = [at for at in (low, high) if 0 <= at < count]
    ordered = np.partition(sample, wanted) if wanted else sample
    return Bracket(
        low=int(ordered[low]) if low >= 0 else 0,
        high=int(ordered[high]) if high < count else LARGEST,
    )


def expected_inside(samples: int, rank: int, size: int) -> float:
    """How many of `size` values a bracket made from so many samples may hold."""
    share = rank / size
    return 2 * size * (_SIGMAS * math.sqrt(share * (1 - share) / samples) + 2 / samples)


def within(parts: Sequence[Inside], known: Bracket, rank: int) -> tuple[int, int] | None:
    """Give the `rank`-th largest (from 1), and how many are larger; None if it is not inside."""
    above = sum(part.above for part in parts)
    if rank <= above:
        return None
    at_high = sum(part.at_high for part in parts)
    if rank <= above + at_high:
        return known.high, above
    above += at_high
    values = np.concatenate([part.inside for part in parts])
    if any(part.overflowed for part in parts):
        return None
    if rank > above + values.size:
        at_low = sum(part.at_low for part in parts) if known.low != known.high else 0
        return (known.low, above + values.size) if rank <= above + values.size + at_low else None
    at = values.size - (rank - above)
    value = int(np.partition(values, at)[at])
    return value, above + int(np.count_nonzero(values > value))


# Magnitudes of packed deltas.


@kernel
def load_deltas(
    data: Bytes, kinds: Kinds, start: int, base: Floats, deltas: NDArray[np.float32]
) -> None:  # pragma: no cover
    """Load all models' deltas of a tile whose base is loaded: [models, TILE]."""
    for i in range(data.shape[0] - 1):
        load_delta(data[i + 1], kinds[i + 1], start, base, deltas[i][: base.size])


@kernel
def variance_tile(
    deltas: NDArray[np.float32], models: int, mean: Floats, out: Floats
) -> None:  # pragma: no cover
    """Population variance of the models' deltas, element by element; `mean` is room for that."""
    count = np.float32(models)
    for j in range(out.size):
        mean[j] = np.float32(0)
    for i in range(models):
        x = deltas[i][: out.size]
        for j in range(out.size):
            mean[j] = mean[j] + x[j]
    for j in range(out.size):
        mean[j] = mean[j] / count
        out[j] = np.float32(0)
    for i in range(models):
        x = deltas[i][: out.size]
        for j in range(out.size):
            off = x[j] - mean[j]
            out[j] = out[j] + off * off
    for j in range(out.size):
        out[j] = abs(out[j] / count)


@kernel
def magnitude_tile(
    data: Bytes,
    kinds: Kinds,
    row: int,
    start: int,
    base: Floats,
    deltas: NDArray[np.float32],
    out: Floats,
) -> None:  # pragma: no cover
    """|θ_row − θ_0| of a tile whose base is loaded, or, of row −1, the models' variance.

    `deltas` is room for one row more than there are models.
    """
    if row < 0:
        models = data.shape[0] - 1
        load_deltas(data, kinds, start, base, deltas)
        variance_tile(deltas, models, deltas[models][: out.size], out)
        return
    load(data[row], kinds[row], start, out)
    for j in range(out.size):
        out[j] = abs(out[j] - base[j])


@kernel
def _magnitudes(
    data: Bytes, kinds: Kinds, at: int, row: int, out: Floats
) -> None:  # pragma: no cover
    room, deltas = np.empty(TILE, np.float32), np.empty((data.shape[0], TILE), np.float32)
    for start in range(0, out.size, TILE):
        size = min(TILE, out.size - start)
        base = room[:size]
        load(data[0], kinds[0], at + start, base)
        magnitude_tile(data, kinds, row, at + start, base, deltas, out[start : start + size])


def magnitudes(packed: Packed, row: int) -> Words:
    """Give the bit patterns of |θ_row − θ_0|, or of the models' variance (row −1): uint32."""
    out = np.empty(packed.count, np.float32)
    _magnitudes(packed.data, packed.kinds, packed.first, row, out)
    return out.view(np.uint32)


@kernel
def _collect(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    rows: NDArray[np.int64],
    ends: NDArray[np.int64],
    counts: Counts,
    kept: NDArray[np.uint32],
) -> None:  # pragma: no cover
    rooms, deltas = np.empty((2, TILE), np.float32), np.empty((data.shape[0], TILE), np.float32)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x = rooms[0][:size], rooms[1][:size]
        load(data[0], kinds[0], at + start, base)
        for i in range(rows.size):
            if i == 0 or rows[i] != rows[i - 1]:
                magnitude_tile(data, kinds, rows[i], at + start, base, deltas, x)
            _sort_out(x.view(np.uint32), ends[i], counts[i], kept[i])


@kernel
def _sort_out(
    bits: Words, ends: NDArray[np.int64], counts: Counts, kept: Words
) -> None:  # pragma: no cover
    low, high = np.uint32(ends[0]), np.uint32(ends[1])
    above, at_high, at_low = np.uint32(0), np.uint32(0), np.uint32(0)
    for j in range(bits.size):
        above = np.uint32(above + np.uint32(bits[j] > high))  # else the sum becomes 64 bits wide
        at_high = np.uint32(at_high + np.uint32(bits[j] == high))
        at_low = np.uint32(at_low + np.uint32(bits[j] == low))
    counts[0] += above
    counts[1] += at_high
    counts[2] += at_low if low != high else np.uint32(0)
    if high - low < np.uint32(2):
        return
    first_inside, inside = np.uint32(low + np.uint32(1)), np.uint32(high - low - np.uint32(1))
    for first in range(0, bits.size, _GROUP):
        group = bits[first : first + _GROUP]
        nearest = np.uint32(0xFFFFFFFF)
        for j in range(group.size):
            nearest = min(nearest, np.uint32(group[j] - first_inside))
        if nearest >= inside:
            continue
        for j in range(group.size):
            if np.uint32(group[j] - first_inside) < inside:
                if counts[3] < kept.size:
                    kept[counts[3]] = group[j]
                counts[3] += 1


def collect(packed: Packed, rows: Sequence[int], brackets: Sequence[Bracket]) -> list[Inside]:
    """Hold the deltas of each of `rows` (equal ones together) against its bracket."""
    counts = np.zeros((len(rows), 4), np.int64)
    kept = np.empty((len(rows), packed.count // _ROOM + 1024), np.uint32)
    ends = np.array([(one.low, one.high) for one in brackets], np.int64)
    order = np.array(rows, np.int64)
    _collect(packed.data, packed.kinds, packed.first, packed.count, order, ends, counts, kept)
    return [
        Inside(int(n[0]), int(n[1]), int(n[2]), one[: n[3]].copy(), bool(n[3] > one.size))
        for n, one in zip(counts, kept, strict=True)
    ]


@kernel
def _count_equal(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    rows: NDArray[np.int64],
    values: NDArray[np.int64],
    out: Counts,
) -> None:  # pragma: no cover
    rooms, deltas = np.empty((2, TILE), np.float32), np.empty((data.shape[0], TILE), np.float32)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, x = rooms[0][:size], rooms[1][:size]
        load(data[0], kinds[0], at + start, base)
        for i in range(rows.size):
            if i == 0 or rows[i] != rows[i - 1]:
                magnitude_tile(data, kinds, rows[i], at + start, base, deltas, x)
            bits, value, equal = x.view(np.uint32), np.uint32(values[i]), np.uint32(0)
            for j in range(size):
                equal = np.uint32(equal + np.uint32(bits[j] == value))
            out[i] += equal


def count_equal(packed: Packed, rows: Sequence[int], values: Sequence[int]) -> Counts:
    """Count the deltas of each of `rows` (equal ones together) whose pattern is its value."""
    out = np.zeros(len(rows), np.int64)
    order = np.array(rows, np.int64)
    _count_equal(
        packed.data,
        packed.kinds,
        packed.first,
        packed.count,
        order,
        np.array(values, np.int64),
        out,
    )
    return out


# Histograms.


@kernel
def _count_high(bits: Words, out: Counts) -> None:  # pragma: no cover
    for i in range(bits.size):
        out[bits[i] >> np.uint32(16)] += 1


@kernel
def _count_low(bits: Words, high: int, out: Counts) -> None:  # pragma: no cover
    for i in range(bits.size):
        if bits[i] >> np.uint32(16) == high:
            out[bits[i] & np.uint32(0xFFFF)] += 1


def count_high(bits: Words) -> Counts:
    """Count magnitudes by their upper 16 bits: int64, 32768 bins."""
    out = np.zeros(HIGH_BINS, np.int64)
    _count_high(bits, out)
    return out


def count_low(bits: Words, high: int) -> Counts:
    """Count the lower 16 bits of the magnitudes whose upper bits are `high`: 65536 bins."""
    out = np.zeros(LOW_BINS, np.int64)
    _count_low(bits, high, out)
    return out


def locate(counts: Counts, rank: int) -> tuple[int, int]:
    """Find the bin that holds the `rank`-th largest (1-based), and how many lie in bins above."""
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, rank))
    above = int(from_top[position - 1]) if position else 0
    return counts.size - 1 - position, above


# The same of torch tensors, on any device.


def magnitude_bits(values: Tensor) -> Tensor:
    """View |values| (fp32) as int32; the integers order like the magnitudes."""
    import torch

    return values.abs().view(torch.int32)


def collect_torch(bits: Tensor, known: Bracket) -> Inside:
    """Define `collect`: hold magnitudes against a bracket."""
    inside = bits[(bits > known.low) & (bits < known.high)]
    return Inside(
        above=int((bits > known.high).sum()),
        at_high=int((bits == known.high).sum()),
        at_low=int((bits == known.low).sum()) if known.low != known.high else 0,
        inside=inside.cpu().numpy().view(np.uint32),
        overflowed=False,
    )


def count_high_torch(bits: Tensor) -> Counts:
    """Define `count_high`."""
    return _to_counts((bits >> 16).bincount(minlength=HIGH_BINS))


def count_low_torch(bits: Tensor, high: int) -> Counts:
    """Define `count_low`."""
    return _to_counts((bits[bits >> 16 == high] & 0xFFFF).bincount(minlength=LOW_BINS))


def _to_counts(counts: Tensor) -> Counts:
    found: Counts = counts.cpu().numpy().astype(np.int64)
    return found
