"""Values as stored -> fp32 and back, a tile at a time: what every fused kernel is made of.

A tile is small enough that it, and the few others that a formula needs, stay in the first or
second cache. Loops are plain so that the compiler vectorises them; indices start at 0 in slices,
because a negative index would have to be wrapped around.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel

__all__ = [
    "BF16",
    "F16",
    "F32",
    "KINDS",
    "TILE",
    "Bytes",
    "Floats",
    "Words",
    "is_finite",
    "load",
    "load_delta",
    "store",
]

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Words: TypeAlias = NDArray[np.uint32]

BF16, F16, F32 = 0, 1, 2
KINDS = {"BF16": BF16, "F16": F16, "F32": F32}
TILE = 2048

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INF = np.uint32(0x7F800000)
_INF_BF16 = np.uint16(0x7F80)
_INF_F16 = np.uint16(0x7C00)
# fp16 exponents are biased by 15, fp32's by 127.
_WIDEN = np.float32(2.0**112)
_NARROW = np.float32(2.0**-112)
_F16_LIMIT = np.uint32(0x477FF000)  # 65520: what rounds to infinity
_F16_NORMAL = np.uint32(0x38800000)  # 2^-14
_F16_DENORMAL = np.float32(0.5)  # added to a subnormal, its last bit is fp16's


@kernel
def load(source: Bytes, kind: int, start: int, out: Floats) -> None:  # pragma: no cover
    """Widen elements from `start` on to fp32, exactly, as many as `out` takes."""
    count = out.size
    bits = out.view(np.uint32)
    if kind == BF16:
        halves = source.view(np.uint16)[start : start + count]
        for j in range(count):
            bits[j] = np.uint32(halves[j]) << np.uint32(16)
    elif kind == F32:
        wide = source.view(np.uint32)[start : start + count]
        for j in range(count):
            bits[j] = wide[j]
    else:
        halves = source.view(np.uint16)[start : start + count]
        for j in range(count):
            bits[j] = (np.uint32(halves[j]) & np.uint32(0x7FFF)) << np.uint32(13)
        for j in range(count):
            out[j] = out[j] * _WIDEN
        for j in range(count):
            half = np.uint32(halves[j])
            sign = (half & np.uint32(0x8000)) << np.uint32(16)
            special = _INF if (half & np.uint32(0x7C00)) == np.uint32(0x7C00) else np.uint32(0)
            bits[j] = bits[j] | special | sign


@kernel
def load_delta(
    source: Bytes, kind: int, start: int, base: Floats, out: Floats
) -> None:  # pragma: no cover
    """Widen to fp32, then subtract the base: one rounding."""
    load(source, kind, start, out)
    for j in range(out.size):
        out[j] = out[j] - base[j]


@kernel
def store(values: Floats, kind: int, out: Bytes, start: int) -> None:  # pragma: no cover
    """Round fp32 to nearest, ties to even, from element `start` of `out` on."""
    count = values.size
    bits = values.view(np.uint32)
    if kind == BF16:
        halves = out.view(np.uint16)[start : start + count]
        for j in range(count):
            word = bits[j]
            odd = (word >> np.uint32(16)) & np.uint32(1)
            rounded = (word + np.uint32(0x7FFF) + odd) >> np.uint32(16)
            nan = (word & _MAGNITUDE) > _INF
            halves[j] = np.uint16(np.uint32(0x7FC0) if nan else rounded)
    elif kind == F32:
        wide = out.view(np.uint32)[start : start + count]
        for j in range(count):
            wide[j] = bits[j]
    else:
        _store_half(values, out.view(np.uint16)[start : start + count])


@kernel
def _store_half(values: Floats, halves: NDArray[np.uint16]) -> None:  # pragma: no cover
    bits = values.view(np.uint32)
    small = np.empty(1, np.float32)
    small_bits = small.view(np.uint32)
    for j in range(values.size):
        magnitude = bits[j] & _MAGNITUDE
        sign = (bits[j] >> np.uint32(16)) & np.uint32(0x8000)
        if magnitude > _INF:
            half = np.uint32(0x7E00)
        elif magnitude >= _F16_LIMIT:
            half = np.uint32(0x7C00)
        elif magnitude < _F16_NORMAL:
            small_bits[0] = magnitude
            small[0] = small[0] + _F16_DENORMAL
            half = small_bits[0] - np.uint32(0x3F000000)
        else:
            odd = (magnitude >> np.uint32(13)) & np.uint32(1)
            half = (magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
        halves[j] = np.uint16(half | sign)


@kernel
def is_finite(source: Bytes, kind: int, start: int, count: int) -> bool:  # pragma: no cover
    """Tell whether no element from `start` on is NaN or infinite."""
    if kind == F32:
        wide = source.view(np.uint32)[start : start + count]
        largest = np.uint32(0)
        for j in range(count):
            largest = max(largest, wide[j] & _MAGNITUDE)
        return bool(largest < _INF)
    halves = source.view(np.uint16)[start : start + count]
    top = np.uint16(0)
    for j in range(count):
        top = max(top, np.uint16(halves[j] & np.uint16(0x7FFF)))
    return bool(top < (_INF_BF16 if kind == BF16 else _INF_F16))
