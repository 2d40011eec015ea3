"""Order statistics of any fp32 values, exact, found in a stream.

Two sweeps of histograms, of the upper and then the lower 16 bits of codes that order like the
values: whatever blocks, threads and the order of tensors are, a rank gives the same value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.method import Block, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUANTILE_SWEEPS", "ValuesOf", "survey_order_statistics"]

# Values to rank in a block, under a key each; those of one key are ranked together.
ValuesOf: TypeAlias = "Callable[[Block[Any, Any]], Mapping[str, Tensor]]"

QUANTILE_SWEEPS = 2
_BINS = 1 << 16
_SIGN = 1 << 31
_Bin: TypeAlias = tuple[str, int]  # a key, and the upper half of a code


def survey_order_statistics(ranks: Mapping[str, Sequence[int]], values_of: ValuesOf) -> Survey:
    """Find, for each key, the values at these ranks, counted from 0 and from the smallest.

    Returns {key: floats in the order of its ranks}. Both zeros are one value, 0.
    """
    highs = yield partial(_highs, values_of)
    places = {
        (key, rank): _locate(highs[key], rank) for key, wanted in ranks.items() for rank in wanted
    }
    bins = dict.fromkeys((key, upper) for (key, _), (upper, _) in places.items())
    lows = yield partial(_lows, values_of, tuple(bins))
    found: dict[tuple[str, int], float] = {}
    for (key, rank), (upper, below) in places.items():
        lower, _ = _locate(lows[key, upper], rank - below)
        found[key, rank] = _decoded((upper << 16 | lower) - _SIGN)
    return {key: tuple(found[key, rank] for rank in wanted) for key, wanted in ranks.items()}


def _coded(values: Tensor) -> Tensor:
    """Integers that order like the values: the magnitude's bits, with the value's sign."""
    import torch

    magnitudes = values.abs().view(torch.int32)
    return magnitudes.where(values >= 0, -magnitudes)


def _decoded(code: int) -> float:
    magnitude = float(np.array([abs(code)], np.uint32).view(np.float32)[0])
    return magnitude if code >= 0 else -magnitude


def _highs(values_of: ValuesOf, block: Block[Any, Any]) -> Statistics:
    half = _BINS // 2
    return {
        key: _counted((_coded(values) >> 16) + half) for key, values in values_of(block).items()
    }


def _lows(values_of: ValuesOf, bins: Iterable[_Bin], block: Block[Any, Any]) -> Statistics:
    half = _BINS // 2
    codes = {key: _coded(values) for key, values in values_of(block).items()}
    return {
        (key, upper): _counted(codes[key][codes[key] >> 16 == upper - half] & 0xFFFF)
        for key, upper in bins
        if key in codes
    }


def _counted(numbers: Tensor) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = numbers.bincount(minlength=_BINS).cpu().numpy()
    return counts


def _locate(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Find the bin that holds a rank (from 0), and how many lie in the bins below it."""
    up_to = np.cumsum(counts)
    assert rank < up_to[-1], "a rank lies within the values"
    at = int(np.searchsorted(up_to, rank, side="right"))
    return at, int(up_to[at] - counts[at])
