"""Which elements of a task vector are the largest: exact trims, found in a stream.

A trim of k keeps exactly k elements, ties in magnitude going to the lower index, whatever blocks,
threads and the order of tensors are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from mergepipe.kernels.fused import ALL, Band
from mergepipe.kernels.select import (
    LARGEST,
    Bracket,
    bracket,
    collect,
    collect_torch,
    count_equal,
    count_high,
    count_high_torch,
    count_low,
    count_low_torch,
    expected_inside,
    locate,
    magnitude_bits,
    magnitudes,
    within,
)
from mergepipe.method import Block, Sampled, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LARGEST_SWEEPS",
    "VARIANCE",
    "Trim",
    "band",
    "keep_count",
    "keep_largest",
    "survey_largest",
    "survey_ranks",
    "trimmed",
    "variance",
]

AnyBlock: TypeAlias = Block[Any, Any]
_FEWEST_SAMPLES, _MOST_SAMPLES = 1 << 16, 1 << 22
LARGEST_SWEEPS = 5  # a sample, a sweep; where the sample misled, two of histograms, one of ties
_MOST_INSIDE = 1 << 23  # patterns inside a bracket; more would take too much memory
_SAMPLED = 1 / 256  # share of a scope that is sampled between these bounds


def keep_count(density: float, size: int) -> int:
    """Give k = max(1, ⌊density·size⌋), in decimal: 0.29 of 100 is 29, not 28."""
    return min(size, max(1, int(Decimal(repr(density)) * size))) if density > 0 else 0


@dataclass(frozen=True, slots=True)
class Trim:
    """Which elements of one task vector stay: magnitudes above `threshold`, and some equal to it.

    `threshold` is an fp32 bit pattern; −1 keeps everything. Of the elements at the threshold a
    block keeps the first `equal[tensor, start]`, or all where it is not named.
    """

    threshold: int
    equal: Mapping[tuple[str, int], int] = field(default_factory=dict)


KEEP_ALL = Trim(-1)
KEEP_NONE = Trim(LARGEST)


# What is ranked: a model's deltas, by its label, or the variance of all models' deltas.
VARIANCE = ""
# One of several ranks that are sought of the same values.
_Key: TypeAlias = tuple[str, int]
_Place: TypeAlias = tuple[str, int]  # a block: tensor and start
# The magnitude of that rank, how many are larger, and how many equal it in each block.
_Found: TypeAlias = tuple[int, int, Mapping[_Place, int]]


def _row(block: AnyBlock, label: str) -> int:
    return -1 if label == VARIANCE else block.row(label)


def variance(block: AnyBlock) -> Tensor:
    """Population variance of the models' deltas, element by element, in fp32."""
    deltas = block.deltas
    count = deltas[0].new_tensor(len(deltas))
    zero = deltas[0].new_zeros(())
    mean = sum(deltas, zero) / count
    return sum(((delta - mean) * (delta - mean) for delta in deltas), zero) / count


def _bits(block: AnyBlock, label: str) -> Tensor:
    """Magnitudes of what is ranked, of a block of tensors."""
    if label == VARIANCE:
        return magnitude_bits(variance(block))
    assert block.base is not None, "only methods that need a base ask for deltas"
    return magnitude_bits(block.models[block.labels.index(label)] - block.base)


def _present(block: AnyBlock, labels: Iterable[str]) -> list[str]:
    """Those labels that the block has, equal ones together."""
    return sorted(label for label in labels if label == VARIANCE or label in block.labels)


def _keys(block: AnyBlock, keys: Iterable[_Key]) -> list[_Key]:
    return sorted(key for key in keys if _present(block, key[:1]))


def _sampled(labels: Sequence[str], block: AnyBlock) -> Statistics:
    found: dict[Hashable, Any] = {}
    for label in _present(block, labels):
        if block.packed is not None:
            values = magnitudes(block.packed, _row(block, label))
        else:
            values = _bits(block, label).cpu().numpy().view(np.uint32)
        found[label, block.tensor, block.start] = values
    return found


def _collected(brackets: Mapping[_Key, Bracket], block: AnyBlock) -> Statistics:
    keys = _keys(block, brackets)
    if block.packed is None:
        found = [collect_torch(_bits(block, key[0]), brackets[key]) for key in keys]
    else:
        rows = [_row(block, key[0]) for key in keys]
        found = collect(block.packed, rows, [brackets[key] for key in keys])
    return {(key, block.tensor, block.start): one for key, one in zip(keys, found, strict=True)}


def _highs(keys: Sequence[_Key], block: AnyBlock) -> Statistics:
    return {
        key: count_high_torch(_bits(block, key[0]))
        if block.packed is None
        else count_high(magnitudes(block.packed, _row(block, key[0])))
        for key in _keys(block, keys)
    }


def _lows(bins: Mapping[_Key, int], block: AnyBlock) -> Statistics:
    return {
        key: count_low_torch(_bits(block, key[0]), bins[key])
        if block.packed is None
        else count_low(magnitudes(block.packed, _row(block, key[0])), bins[key])
        for key in _keys(block, bins)
    }


def _equals(thresholds: Mapping[_Key, int], block: AnyBlock) -> Statistics:
    keys = _keys(block, thresholds)
    if block.packed is not None:
        rows = [_row(block, key[0]) for key in keys]
        counts = [int(n) for n in count_equal(block.packed, rows, [thresholds[k] for k in keys])]
    else:
        counts = [int((_bits(block, key[0]) == thresholds[key]).sum()) for key in keys]
    return {(key, block.tensor, block.start): n for key, n in zip(keys, counts, strict=True)}


def survey_largest(
    sizes: Mapping[str, int], counts: Mapping[str, int], *, ties: Literal["index", "all"] = "index"
) -> Survey:
    """Find, for each label, which `counts[label]` of its `sizes[label]` deltas are the largest.

    `ties="all"` keeps every element equal to the k-th. Returns {label: Trim}.
    """
    (trims,) = yield from survey_ranks(sizes, (counts,), ties=ties)
    return trims


def survey_ranks(
    sizes: Mapping[str, int],
    wanted: Sequence[Mapping[str, int]],
    *,
    ties: Literal["index", "all"] = "index",
) -> Survey:
    """Find the same for several counts at once: a tuple of {label: Trim}.

    A sample and one sweep; three more where the sample misled. Everything is measured together, so
    that each sweep serves all that still need it.
    """
    counts = {(label, i): k for i, one in enumerate(wanted) for label, k in one.items()}
    trims = {key: KEEP_NONE for key, k in counts.items() if k == 0}
    trims |= {key: KEEP_ALL for key, k in counts.items() if k >= sizes[key[0]] > 0}
    ranks = {key: k for key, k in counts.items() if key not in trims}
    found = (yield from _survey_brackets(sizes, ranks)) if ranks else {}
    missed = {key: rank for key, rank in ranks.items() if key not in found}
    found |= (yield from _survey_histograms(missed)) if missed else {}
    for key, (threshold, larger, equal) in found.items():
        spare = ties == "index" and ranks[key] - larger < sum(equal.values())
        trims[key] = Trim(threshold, _allot(equal, ranks[key] - larger) if spare else {})
    return tuple({label: trims[label, i] for label in one} for i, one in enumerate(wanted))


def _survey_brackets(sizes: Mapping[str, int], ranks: Mapping[_Key, int]) -> Survey:
    """Find {key: _Found} by a sample and a sweep; keys whose sample misled are left out."""
    largest = max(sizes[label] for label, _ in ranks)
    wanted = min(max(_FEWEST_SAMPLES, int(largest * _SAMPLED)), _MOST_SAMPLES)
    labels = tuple(dict.fromkeys(label for label, _ in ranks))
    sample = yield Sampled(partial(_sampled, labels), min(1.0, wanted / largest))
    values = {label: np.concatenate(list(_parts(sample, label).values())) for label in labels}
    brackets = {}
    for (label, i), rank in ranks.items():
        if expected_inside(values[label].size, rank, sizes[label]) <= _MOST_INSIDE:
            brackets[label, i] = bracket(values[label], rank, sizes[label])
    held = (yield partial(_collected, brackets)) if brackets else {}
    found: dict[_Key, _Found] = {}
    for key, known in brackets.items():
        parts = _parts(held, key)
        place = within(tuple(parts.values()), known, ranks[key])
        if place is not None:
            found[key] = (*place, {at: part.count(known, place[0]) for at, part in parts.items()})
    return found


def _parts(statistics: Mapping[Any, Any], key: Hashable) -> dict[_Place, Any]:
    """Those of one key, by block."""
    return {(tensor, start): value for (k, tensor, start), value in statistics.items() if k == key}


def _survey_histograms(ranks: Mapping[_Key, int]) -> Survey:
    """Find the same in sweeps of fixed memory, whatever the values."""
    high = yield partial(_highs, tuple(ranks))
    bins = {key: locate(high[key], rank) for key, rank in ranks.items()}
    low = yield partial(_lows, {key: found[0] for key, found in bins.items()})
    places = {}
    for key, rank in ranks.items():
        upper, above = bins[key]
        lower, between = locate(low[key], rank - above)
        places[key] = (upper << 16 | lower, above + between)
    equal = yield partial(_equals, {key: place[0] for key, place in places.items()})
    return {key: (*place, _parts(equal, key)) for key, place in places.items()}


def _allot(equal: Mapping[tuple[str, int], int], quota: int) -> dict[tuple[str, int], int]:
    """Share `quota` out over blocks in order of tensor name and index; name those cut short."""
    shares = {}
    for place in sorted(equal):
        share = min(quota, equal[place])
        if share < equal[place]:
            shares[place] = share
        quota -= share
    return shares


def keep_largest(block: AnyBlock, trims: Mapping[str, Trim]) -> tuple[Tensor, ...]:
    """Give the block's task vectors with all but the elements that `trims` keeps set to 0."""
    return tuple(
        trimmed(delta, trims[label], (block.tensor, block.start))
        for delta, label in zip(block.deltas, block.labels, strict=True)
    )


def trimmed(delta: Tensor, trim: Trim, place: tuple[str, int]) -> Tensor:
    """Set to 0 what `trim` does not keep of the block at `place`."""
    if trim.threshold < 0:
        return delta
    bits = magnitude_bits(delta)
    if place not in trim.equal:
        return delta.where(bits >= trim.threshold, 0.0)
    keep = bits > trim.threshold
    tied = (bits == trim.threshold).nonzero().flatten()[: trim.equal[place]]
    keep[tied] = True
    return delta.where(keep, 0.0)


def band(block: AnyBlock, kept: Trim, dropped: Trim = KEEP_NONE) -> Band:
    """Say to a kernel what stays of a block: what `kept` keeps and `dropped` does not."""
    place = (block.tensor, block.start)
    if dropped.threshold < 0:
        return Band(low=LARGEST, high=LARGEST)
    return Band(
        low=max(kept.threshold, 0),
        low_kept=kept.equal.get(place, ALL),
        high=dropped.threshold,
        high_dropped=dropped.equal.get(place, ALL),
    )
