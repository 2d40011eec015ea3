"""What methods on task vectors share: trim by magnitude, elect signs, combine.

A task vector is τ_i = θ_i − θ_0. Every function here is elementwise on blocks, and exact: where a
trim keeps k elements it keeps exactly k, ties in magnitude going to the lower index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mergepipe.kernels.select import count_high, count_low, locate, magnitude_bits
from mergepipe.method import Block, Statistics, Survey

__all__ = [
    "NO_WEIGHT",
    "Election",
    "Trim",
    "add_update",
    "agreeing",
    "combine",
    "keep_count",
    "keep_largest",
    "survey_largest",
]

AnyBlock: TypeAlias = Block[Any, Any]
Election: TypeAlias = Literal["sum", "mergekit", "reference"]
_SIGN_MASK = 0x7FFFFFFF
NO_WEIGHT = 1e-8  # a sum of weights below this is not divided by


def keep_count(density: float, size: int) -> int:
    """Give k = max(1, ⌊density·size⌋), in decimal: 0.29 of 100 is 29, not 28."""
    return min(size, max(1, int(Decimal(repr(density)) * size))) if density > 0 else 0


@dataclass(frozen=True, slots=True)
class Trim:
    """Which elements of one task vector stay: magnitudes above `threshold`, and some equal to it.

    `threshold` is an fp32 bit pattern; −1 keeps everything. `equal[tensor, start]` says how many
    of the elements at the threshold a block keeps, in order of index; None keeps all of them.
    """

    threshold: int
    equal: Mapping[tuple[str, int], int] | None = None


KEEP_ALL = Trim(-1)
KEEP_NONE = Trim(_SIGN_MASK)


def _highs(labels: Sequence[str], block: AnyBlock) -> Statistics:
    deltas = dict(zip(block.labels, block.deltas, strict=True))
    return {label: count_high(deltas[label]) for label in labels if label in deltas}


def _lows(bins: Mapping[str, int], block: AnyBlock) -> Statistics:
    deltas = dict(zip(block.labels, block.deltas, strict=True))
    return {
        label: count_low(deltas[label], high) for label, high in bins.items() if label in deltas
    }


def _equals(thresholds: Mapping[str, int], block: AnyBlock) -> Statistics:
    deltas = dict(zip(block.labels, block.deltas, strict=True))
    return {
        (label, block.tensor, block.start): np.array(
            int((magnitude_bits(deltas[label]) == bits).sum()), np.int64
        )
        for label, bits in thresholds.items()
        if label in deltas
    }


def survey_largest(
    sizes: Mapping[str, int], counts: Mapping[str, int], *, ties: Literal["index", "all"] = "index"
) -> Survey:
    """Find, for each label, which `counts[label]` of its `sizes[label]` deltas are the largest.

    Three sweeps at most: upper and lower halves of the bit pattern of the k-th magnitude, and,
    where only some of the elements equal to it stay, how many each block has. `ties="all"` keeps
    every element equal to the k-th. Returns {label: Trim}.
    """
    trims = {label: KEEP_NONE for label, k in counts.items() if k == 0}
    trims |= {label: KEEP_ALL for label, k in counts.items() if k >= sizes[label] > 0}
    ranks = {label: k for label, k in counts.items() if label not in trims}
    if not ranks:
        return trims
    high = yield partial(_highs, tuple(ranks))
    bins = {label: locate(high[label], rank) for label, rank in ranks.items()}
    low = yield partial(_lows, {label: found[0] for label, found in bins.items()})
    spare: dict[str, int] = {}  # labels with more elements at the threshold than may stay
    for label, rank in ranks.items():
        within, above = locate(low[label], rank - bins[label][1])
        trims[label] = Trim(bins[label][0] << 16 | within)
        quota = rank - bins[label][1] - above
        if ties == "index" and quota < low[label][within]:
            spare[label] = quota
    if spare:
        equal = yield partial(_equals, {label: trims[label].threshold for label in spare})
        for label, quota in spare.items():
            trims[label] = Trim(trims[label].threshold, _allot(equal, label, quota))
    return trims


def _allot(equal: Statistics, label: str, quota: int) -> dict[tuple[str, int], int]:
    """Share `quota` out over blocks in order of tensor name and index."""
    shares = {}
    for key in sorted(key for key in equal if isinstance(key, tuple) and key[0] == label):
        shares[key[1:]] = min(quota, int(equal[key]))
        quota -= shares[key[1:]]
    return shares


def keep_largest(block: AnyBlock, trims: Mapping[str, Trim]) -> tuple[Tensor, ...]:
    """Give the block's task vectors with all but the elements that `trims` keeps set to 0."""
    return tuple(
        _trimmed(delta, trims[label], (block.tensor, block.start))
        for delta, label in zip(block.deltas, block.labels, strict=True)
    )


def _trimmed(delta: Tensor, trim: Trim, place: tuple[str, int]) -> Tensor:
    if trim.threshold < 0:
        return delta
    bits = magnitude_bits(delta)
    if trim.equal is None:
        return torch.where(bits >= trim.threshold, delta, 0.0)
    keep = bits > trim.threshold
    tied = (bits == trim.threshold).nonzero().flatten()[: trim.equal[place]]
    keep[tied] = True
    return torch.where(keep, delta, 0.0)


def agreeing(vectors: Sequence[Tensor], rule: Election, majority: int = 0) -> tuple[Tensor, ...]:
    """Elect a sign per element from Σ_i x_i, and say where each vector agrees: bool masks.

    Where the sum is 0, `sum` elects nobody, `mergekit` elects +, and `reference` (ties-merging)
    elects `majority`, the sign that won most often in the scope, or − where that is 0 too.
    Elements that are 0 never agree.
    """
    total = sum(vectors[1:], vectors[0])
    positive = total >= 0 if rule == "mergekit" else total > 0
    negative = total < 0
    if rule == "reference":
        positive = positive | ((total == 0) & (majority > 0))
        negative = ~positive
    return tuple((positive & (x > 0)) | (negative & (x < 0)) for x in vectors)


def combine(
    vectors: Sequence[Tensor],
    weights: Sequence[float],
    masks: Sequence[Tensor] | None,
    *,
    normalize: bool,
) -> Tensor:
    """Add the weighted `vectors` up where their masks hold; divide by those weights if asked.

    Σ_i x_i·m_i / Σ_i w_i·m_i, with a divisor of 0 read as 1; without masks m_i = 1. The vectors
    already carry their weights.
    """
    if masks is None:
        plain, share = sum(vectors[1:], vectors[0]), sum(weights)
        return plain / share if normalize and abs(share) >= NO_WEIGHT else plain
    total, divisor = torch.zeros_like(vectors[0]), torch.zeros_like(vectors[0])
    for vector, weight, mask in zip(vectors, weights, masks, strict=True):
        total += torch.where(mask, vector, 0.0)
        divisor += mask * weight
    return total / torch.where(divisor == 0, 1.0, divisor) if normalize else total


def add_update(base: Tensor | None, update: Tensor, scale: float) -> Tensor:
    """θ_0 + λ·update, and exactly θ_0 (also −0.0) where the update is 0."""
    assert base is not None, "a task-vector method has a base"
    return torch.where(update == 0, base, base + scale * update)
