"""Merges in one pass over (base, models) → out: the CPU twins of the definitions in torch.

Every operation is the definition's, on fp32, in its order, so the bits are the same.
"""

# ruff: noqa: C901, PLR0912 -- a kernel is one loop nest
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel
from mergepipe.kernels.packed import Kinds, Out, Packed, floats
from mergepipe.kernels.random import fill
from mergepipe.kernels.select import load_deltas, variance_tile
from mergepipe.kernels.tiles import TILE, Bytes, Floats, Words, load, store

__all__ = ["ALL", "ELECTIONS", "Band", "Combine", "Draw", "add_updates", "as_rows", "weighted_sum"]

ELECTIONS = {None: 0, "sum": 1, "mergekit": 2, "reference": 3}
_SUM, _MERGEKIT = 1, 2
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_EVERY_WORD = 1 << 32
ALL = 1 << 62  # of the elements equal to a threshold


def weighted_sum(packed: Packed, weights: Sequence[float], divisor: float | None, out: Out) -> None:
    """Σ_i w_i θ_i over all rows, divided by `divisor` unless it is None."""
    divide = divisor is not None
    by = floats([1.0 if divisor is None else divisor])[0]
    _weighted_sum(
        packed.data,
        packed.kinds,
        packed.first,
        packed.count,
        floats(weights),
        divide,
        by,
        out.data,
        out.kind,
    )


@kernel
def _weighted_sum(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    weights: Floats,
    divide: bool,
    divisor: np.float32,
    out: Bytes,
    out_kind: int,
) -> None:  # pragma: no cover
    values, total = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        x, t = values[:size], total[:size]
        load(data[0], kinds[0], at + start, x)
        w = weights[0]
        for j in range(size):
            t[j] = x[j] * w
        for i in range(1, data.shape[0]):
            load(data[i], kinds[i], at + start, x)
            w = weights[i]
            for j in range(size):
                t[j] = t[j] + x[j] * w
        if divide:
            for j in range(size):
                t[j] = t[j] / divisor
        store(t, out_kind, out, start)


@dataclass(frozen=True, slots=True)
class Band:
    """Which magnitudes of a task vector stay in one block: [lower, upper), as bit patterns.

    Elements equal to `low` stay as far as they are among the block's first `low_kept`, and those
    equal to `high` as far as they come after its first `high_dropped`.
    """

    low: int = 0
    low_kept: int = ALL
    high: int = 1 << 31
    high_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """A random mask: the stream's key, and the bound that the words of what stays lie below."""

    key: int = 0
    limit: int = _EVERY_WORD


@dataclass(frozen=True, slots=True)
class Combine:
    """How task vectors become one update, and how that is added to the base."""

    weights: Sequence[float]
    factors: Sequence[float] | None = None
    elect: str | None = None
    normalize: bool = False
    divisor: float | None = None  # of a plain sum
    scale: float = 1.0
    weigh_late: bool = False  # weights count only after the election
    select: Band | None = None  # of the models' variance: which elements stay, and no other trim
    given: bool = False  # the models' rows are task vectors, made before


def as_rows(bands: Sequence[Band]) -> NDArray[np.int64]:
    """Give bands as kernels take them."""
    rows = [(band.low, band.low_kept, band.high, band.high_dropped) for band in bands]
    return np.array(rows, np.int64).reshape(-1, 4)


def add_updates(
    packed: Packed,
    bands: Sequence[Band],
    draws: Sequence[Draw],
    start: int,
    how: Combine,
    out: Out,
) -> None:
    """θ_0 + λ·update, where the update combines trimmed, dropped and weighted task vectors."""
    size = len(bands)
    divide = how.divisor is not None
    selection = as_rows([] if how.select is None else [how.select])
    _add_updates(
        packed.data,
        packed.kinds,
        packed.first,
        packed.count,
        as_rows(bands),
        np.array([draw.key for draw in draws], np.uint64),
        np.array([draw.limit for draw in draws], np.int64),
        start,
        floats(how.factors if how.factors is not None else [1.0] * size),
        how.factors is not None,
        floats(how.weights),
        ELECTIONS[how.elect],
        how.normalize,
        how.weigh_late,
        selection,
        how.given,
        divide,
        floats([1.0 if how.divisor is None else how.divisor])[0],
        floats([how.scale])[0],
        out.data,
        out.kind,
    )


@kernel
def is_plain(band: NDArray[np.int64]) -> bool:  # pragma: no cover
    """Tell whether all elements equal to an end of the band stay, or none."""
    low_kept, high_dropped = band[1], band[3]
    return bool((low_kept == 0 or low_kept >= ALL) and (high_dropped == 0 or high_dropped >= ALL))


@kernel
def trim_and_weigh(
    x: Floats, base: Floats, band: NDArray[np.int64], weight: np.float32, total: Floats
) -> None:  # pragma: no cover
    """Make x w·trim(x − base), and add that to `total`: the commonest case, in one loop."""
    bits = x.view(np.uint32)
    lower = np.uint32(band[0] if band[1] else band[0] + 1)
    upper = max(lower, np.uint32(band[2] if band[3] else band[2] + 1))
    width = np.uint32(upper - lower)
    if lower == np.uint32(0) and width > _MAGNITUDE:
        for j in range(x.size):
            x[j] = (x[j] - base[j]) * weight
            total[j] = total[j] + x[j]
        return
    for j in range(x.size):
        x[j] = x[j] - base[j]
        inside = np.uint32((bits[j] & _MAGNITUDE) - lower) < width
        x[j] = x[j] * weight if inside else np.float32(0)
        total[j] = total[j] + x[j]


@kernel
def _keep_range(x: Floats, lower: np.uint32, upper: np.uint32) -> None:  # pragma: no cover
    bits, width = x.view(np.uint32), np.uint32(max(lower, upper) - lower)
    for j in range(x.size):
        inside = np.uint32((bits[j] & _MAGNITUDE) - lower) < width
        x[j] = x[j] if inside else np.float32(0)


@kernel
def _count(bits: Words, value: np.uint32) -> int:  # pragma: no cover
    found = np.uint32(0)
    for j in range(bits.size):
        found = np.uint32(found + np.uint32((bits[j] & _MAGNITUDE) == value))
    return int(found)


@kernel
def trim_tile(
    x: Floats, band: NDArray[np.int64], seen: NDArray[np.int64]
) -> None:  # pragma: no cover
    """Set to 0 what lies outside the band; `seen` counts elements equal to its ends so far."""
    low, low_kept, high, high_dropped = band[0], band[1], band[2], band[3]
    bits = x.view(np.uint32)
    lows, highs = _count(bits, np.uint32(low)), _count(bits, np.uint32(high))
    # Only the tile in which a quota runs out is gone through one by one.
    all_low, no_low = seen[0] + lows <= low_kept, seen[0] >= low_kept
    no_high, all_high = seen[1] + highs <= high_dropped, seen[1] >= high_dropped
    if (all_low or no_low) and (all_high or no_high):
        seen[0] += lows
        seen[1] += highs
        lower, upper = low if all_low else low + 1, high + 1 if all_high else high
        _keep_range(x, np.uint32(lower), np.uint32(upper))
        return
    for j in range(x.size):
        magnitude = np.int64(bits[j] & _MAGNITUDE)
        above, below = magnitude > low, magnitude < high
        if magnitude == low:
            above = seen[0] < low_kept
            seen[0] += 1
        if magnitude == high:
            below = seen[1] >= high_dropped
            seen[1] += 1
        if not (above and below):
            x[j] = np.float32(0)


@kernel
def mask_tile(deltas: NDArray[np.float32], models: int, chosen: Floats) -> None:  # pragma: no cover
    """Set all models' deltas to 0 where `chosen` is."""
    for i in range(models):
        x = deltas[i][: chosen.size]
        for j in range(x.size):
            x[j] = x[j] if chosen[j] != np.float32(0) else np.float32(0)


@kernel
def drop_tile(x: Floats, key: int, limit: int, start: int, room: Words) -> None:  # pragma: no cover
    """Set to 0 the elements whose random word is not below `limit`."""
    if limit >= _EVERY_WORD:
        return
    first = fill(key, start, room[: (start % 4 + x.size + 3) // 4 * 4])
    words = room[first : first + x.size]
    bound = np.uint32(limit)
    for j in range(x.size):
        x[j] = x[j] if words[j] < bound else np.float32(0)


@kernel
def agree_tile(
    x: Floats,
    total: Floats,
    rule: int,
    factor: np.float32,
    weight: np.float32,
    sums: Floats,
    shares: Floats,
) -> None:  # pragma: no cover
    """Add `x` times `factor`, and its weight, up where it has the elected sign."""
    zero = np.float32(0)
    if rule == _SUM:
        for j in range(x.size):
            agrees = ((total[j] > zero) & (x[j] > zero)) | ((total[j] < zero) & (x[j] < zero))
            sums[j] += x[j] * factor if agrees else zero
            shares[j] += weight if agrees else zero
    elif rule == _MERGEKIT:
        for j in range(x.size):
            agrees = ((total[j] >= zero) & (x[j] > zero)) | ((total[j] < zero) & (x[j] < zero))
            sums[j] += x[j] * factor if agrees else zero
            shares[j] += weight if agrees else zero
    else:
        for j in range(x.size):
            up = total[j] > zero
            agrees = (up & (x[j] > zero)) | ((not up) & (x[j] < zero))
            sums[j] += x[j] * factor if agrees else zero
            shares[j] += weight if agrees else zero


@kernel
def add_tile(base: Floats, update: Floats, scale: np.float32) -> None:  # pragma: no cover
    """Base + scale·update, in `update`, and exactly the base where the update is 0."""
    for j in range(base.size):
        u = update[j]
        update[j] = base[j] if u == np.float32(0) else base[j] + scale * u


@kernel
def _add_updates(
    data: Bytes,
    kinds: Kinds,
    at: int,
    count: int,
    bands: NDArray[np.int64],
    keys: NDArray[np.uint64],
    limits: NDArray[np.int64],
    first: int,
    factors: Floats,
    rescale: bool,
    weights: Floats,
    rule: int,
    normalize: bool,
    weigh_late: bool,
    selection: NDArray[np.int64],
    given: bool,
    divide: bool,
    divisor: np.float32,
    scale: np.float32,
    out: Bytes,
    out_kind: int,
) -> None:  # pragma: no cover
    models = data.shape[0] - 1
    rows = np.empty((models + 4, TILE), np.float32)
    chosen = np.zeros(2, np.int64)
    room = np.empty(TILE + 8, np.uint32)
    seen = np.zeros((models, 2), np.int64)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        base, total = rows[models][:size], rows[models + 1][:size]
        sums, shares = rows[models + 2][:size], rows[models + 3][:size]
        load(data[0], kinds[0], at + start, base)
        selects = selection.shape[0] > 0
        if selects:
            load_deltas(data, kinds, at + start, base, rows)
            variance_tile(rows, models, sums, shares)
            trim_tile(shares, selection[0], chosen)
            mask_tile(rows, models, shares)
        for j in range(size):
            total[j] = np.float32(0)
        for i in range(models):
            x, w = rows[i][:size], np.float32(1) if weigh_late else weights[i]
            if selects:  # and nothing else
                for j in range(size):
                    x[j] = x[j] * w
                    total[j] = total[j] + x[j]
                continue
            load(data[i + 1], kinds[i + 1], at + start, x)
            plain = limits[i] >= _EVERY_WORD and is_plain(bands[i])
            if plain and not (rescale or given):
                trim_and_weigh(x, base, bands[i], w, total)
                continue
            if not given:
                for j in range(size):
                    x[j] = x[j] - base[j]
            trim_tile(x, bands[i], seen[i])
            drop_tile(x, keys[i], limits[i], first + start, room)
            factor = factors[i] if rescale else np.float32(1)
            for j in range(size):
                x[j] = x[j] * factor * w
                total[j] = total[j] + x[j]
        if rule == 0:
            if divide:
                for j in range(size):
                    total[j] = total[j] / divisor
            add_tile(base, total, scale)
            store(total, out_kind, out, start)
            continue
        for j in range(size):
            sums[j] = np.float32(0)
            shares[j] = np.float32(0)
        for i in range(models):
            late = weights[i] if weigh_late else np.float32(1)
            agree_tile(rows[i][:size], total, rule, late, weights[i], sums, shares)
        if normalize:
            for j in range(size):
                share = shares[j]
                sums[j] = sums[j] / (np.float32(1) if share == np.float32(0) else share)
        add_tile(base, sums, scale)
        store(sums, out_kind, out, start)
