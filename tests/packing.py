"""Tensors packed as their files would hold them, and values that are hard to merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mergepipe.kernels.packed import Packed
from mergepipe.kernels.tiles import KINDS

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_WORDS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What stands around the run: NaN in every dtype, so that reading outside it shows.
_OUTSIDE = 0xFF


def pack_tensors(rows: Sequence[torch.Tensor], *, based: bool, first: int = 0) -> Packed:
    """Rows as stored, the run beginning at element `first`."""
    count = rows[0].numel()
    width = -(-4 * (first + count + 1) // 64) * 64
    data = np.full((len(rows), width), _OUTSIDE, np.uint8)
    for row, values in zip(data, rows, strict=True):
        stored, size = as_bytes(values), values.element_size()
        row[first * size : first * size + stored.size] = stored
    kinds = np.array([KINDS[_NAMES[values.dtype]] for values in rows], np.int64)
    return Packed(data, kinds, count, based, first)


def as_bytes(values: torch.Tensor) -> NDArray[np.uint8]:
    return values.contiguous().view(torch.uint8).numpy()


def bits_of(values: torch.Tensor) -> torch.Tensor:
    """The bit patterns; every NaN has the same."""
    return values.where(~values.isnan(), torch.nan).view(_WORDS[values.dtype])


# Values: (dtype, count, draw) -> tensor.

Values = Callable[[torch.dtype, int, torch.Generator], torch.Tensor]


def normal(dtype: torch.dtype, count: int, draw: torch.Generator) -> torch.Tensor:
    return (torch.randn(count, generator=draw) * 0.02).to(dtype)


def whole(dtype: torch.dtype, count: int, draw: torch.Generator) -> torch.Tensor:
    """Numbers whose differences tie in magnitude everywhere."""
    return torch.randint(-3, 4, (count,), generator=draw).to(dtype)


def equal(dtype: torch.dtype, count: int, _: torch.Generator) -> torch.Tensor:
    """The same in every row, so that task vectors are 0."""
    return torch.linspace(-1, 1, count).bfloat16().to(dtype)


def signed_zeros(dtype: torch.dtype, count: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, (count,), generator=draw).mul(2).sub(1).to(dtype) * 0


def subnormal(dtype: torch.dtype, count: int, draw: torch.Generator) -> torch.Tensor:
    bits = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23}[dtype]
    words = torch.randint(-(1 << bits), 1 << bits, (count,), generator=draw)
    lowest = torch.iinfo(_WORDS[dtype]).min
    return torch.where(words < 0, lowest - words, words).to(_WORDS[dtype]).view(dtype)


def large(dtype: torch.dtype, count: int, draw: torch.Generator) -> torch.Tensor:
    """Near the largest, so that differences overflow."""
    span = torch.rand(count, generator=draw, dtype=torch.float64) * 2 - 1
    return (span * torch.finfo(dtype).max).to(dtype)


def any_bits(dtype: torch.dtype, count: int, draw: torch.Generator) -> torch.Tensor:
    """Bit patterns at random, of finite numbers."""
    span = torch.iinfo(_WORDS[dtype])
    words = torch.randint(span.min, span.max + 1, (count,), generator=draw)
    found = words.to(_WORDS[dtype]).view(dtype)
    return found.where(found.isfinite(), 1.0)


VALUES: dict[str, Values] = {
    found.__name__: found
    for found in (normal, whole, equal, signed_zeros, subnormal, large, any_bits)
}
