"""The k-th largest magnitude of a stream, exactly, without sorting it.

fp32 magnitudes order like their bit patterns. One sweep counts the upper 16 bits (the sign bit is
0, so 32768 bins), a second the lower 16 bits of what fell into the bin that holds rank k. The
counts of parts add up, so a whole model can be swept in pieces.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "HIGH_BINS",
    "LOW_BINS",
    "count_high",
    "count_high_torch",
    "count_low",
    "count_low_torch",
    "locate",
    "magnitude_bits",
]

Counts = NDArray[np.int64]
HIGH_BINS = 1 << 15
LOW_BINS = 1 << 16


def magnitude_bits(values: Tensor) -> Tensor:
    """View |values| (fp32) as int32; the integers order like the magnitudes."""
    return values.abs().view(torch.int32)


@numba.njit(nogil=True, cache=True)
def _count_high(bits: NDArray[np.uint32], out: Counts) -> None:  # pragma: no cover
    for i in range(bits.size):
        out[(bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)] += 1


@numba.njit(nogil=True, cache=True)
def _count_low(bits: NDArray[np.uint32], high: int, out: Counts) -> None:  # pragma: no cover
    for i in range(bits.size):
        if (bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16) == high:
            out[bits[i] & np.uint32(0xFFFF)] += 1


def count_high(values: Tensor) -> Counts:
    """Count magnitudes of fp32 `values` by their upper 16 bits: int64, 32768 bins."""
    if values.device.type != "cpu":
        return count_high_torch(values)
    out = np.zeros(HIGH_BINS, np.int64)
    _count_high(values.contiguous().numpy().view(np.uint32), out)
    return out


def count_high_torch(values: Tensor) -> Counts:
    """Define `count_high`, on any device."""
    return _to_counts(torch.bincount(magnitude_bits(values) >> 16, minlength=HIGH_BINS))


def count_low(values: Tensor, high: int) -> Counts:
    """Count the lower 16 bits of the magnitudes whose upper bits are `high`: 65536 bins."""
    if values.device.type != "cpu":
        return count_low_torch(values, high)
    out = np.zeros(LOW_BINS, np.int64)
    _count_low(values.contiguous().numpy().view(np.uint32), high, out)
    return out


def count_low_torch(values: Tensor, high: int) -> Counts:
    """Define `count_low`, on any device."""
    bits = magnitude_bits(values)
    return _to_counts(torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=LOW_BINS))


def _to_counts(counts: Tensor) -> Counts:
    return counts.cpu().numpy().astype(np.int64)


def locate(counts: Counts, rank: int) -> tuple[int, int]:
    """Find the bin that holds the `rank`-th largest (1-based), and how many lie in bins above."""
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, rank))
    above = int(from_top[position - 1]) if position else 0
    return counts.size - 1 - position, above
