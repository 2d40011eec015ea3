"""Random numbers that depend on (key, index) alone: Philox-4x32-10.

J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. Element i of a stream is
word i mod 4 of the block with counter i div 4, so that any slice of a tensor can be drawn alone:
chunking, threads, devices and resuming change nothing.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "fill",
    "keep_limit",
    "keep_mask",
    "keep_mask_torch",
    "philox",
    "random_words",
    "random_words_torch",
    "stream_key",
]

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers (SC 2011, table 2)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # Weyl constants: golden ratio, sqrt(3) - 1
_ROUNDS = 10
_MASK = 0xFFFFFFFF


def stream_key(seed: int, model: str, tensor: str) -> int:
    """Give the 64-bit key of the stream for one tensor of one model."""
    text = f"{seed}\0{model}\0{tensor}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


@kernel
def _round(
    c0: np.uint32, c1: np.uint32, c2: np.uint32, c3: np.uint32, k0: np.uint32, k1: np.uint32
) -> tuple[np.uint32, np.uint32, np.uint32, np.uint32]:  # pragma: no cover
    p0, p1 = np.uint64(c0) * np.uint64(_M0), np.uint64(c2) * np.uint64(_M1)
    shift = np.uint64(32)
    return (
        np.uint32(np.uint32(p1 >> shift) ^ c1 ^ k0),
        np.uint32(p1),
        np.uint32(np.uint32(p0 >> shift) ^ c3 ^ k1),
        np.uint32(p0),
    )


@kernel
def _next(k0: np.uint32, k1: np.uint32) -> tuple[np.uint32, np.uint32]:  # pragma: no cover
    return np.uint32(k0 + np.uint32(_W0)), np.uint32(k1 + np.uint32(_W1))


@kernel
def fill_blocks(key: int, block: int, out: NDArray[np.uint32]) -> None:  # pragma: no cover
    """Fill `out`, a multiple of 4 long, with the words of counters from `block` on."""
    # Ten rounds, written out: a loop inside keeps the outer one from being vectorised.
    first, second = np.uint32(key), np.uint32(np.uint64(key) >> np.uint64(32))
    for j in range(out.size // 4):
        counter = np.uint64(block) + np.uint64(j)
        c0, c1 = np.uint32(counter), np.uint32(counter >> np.uint64(32))
        c2, c3, k0, k1 = np.uint32(0), np.uint32(0), first, second
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = _next(k0, k1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = _next(k0, k1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = _next(k0, k1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = _next(k0, k1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = _next(k0, k1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = _next(k0, k1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = _next(k0, k1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = _next(k0, k1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = _next(k0, k1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        out[4 * j], out[4 * j + 1], out[4 * j + 2], out[4 * j + 3] = c0, c1, c2, c3


@kernel
def fill(key: int, start: int, room: NDArray[np.uint32]) -> int:  # pragma: no cover
    """Put words `start` ... into `room`, whole counters, and say at which index they begin.

    `room` has space for the words and for up to 3 before and after them.
    """
    fill_blocks(key, start // 4, room)
    return start % 4


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Give the four 32-bit words of each counter, last dimension: int64 in [0, 2**32).

    64-bit products wrap, so their low word is exact, and the high word is exact after masking off
    the sign extension of the shift.
    """
    import torch

    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def random_words_torch(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """Define words `start` to `start + count` of stream `key`: int64, on any device."""
    import torch

    blocks = torch.arange(start // 4, (start + count + 3) // 4, device=device)
    zero = torch.zeros_like(blocks)
    counter = (blocks & _MASK, blocks >> 32, zero, zero)
    words = philox(counter, (key & _MASK, key >> 32)).flatten()
    return words[start % 4 : start % 4 + count]


def random_words(key: int, start: int, count: int) -> NDArray[np.uint32]:
    """Give words `start` to `start + count` of stream `key`: uint32, on the CPU."""
    room = np.empty((start % 4 + count + 3) // 4 * 4, np.uint32)
    first = fill(np.uint64(key), start, room)
    return room[first : first + count]


def keep_mask(key: int, start: int, count: int, density: float, device: torch.device) -> Tensor:
    """Draw a Bernoulli(density) mask for `count` elements from index `start`: bool, 1-D.

    An element is kept when its 32-bit word is below density·2³², so the probability is exact to
    2⁻³².
    """
    if device.type != "cpu":
        return keep_mask_torch(key, start, count, density, device)
    import torch

    return torch.from_numpy(random_words(key, start, count) < np.uint64(keep_limit(density)))


def keep_mask_torch(
    key: int, start: int, count: int, density: float, device: torch.device
) -> Tensor:
    """Define `keep_mask`, on any device."""
    return random_words_torch(key, start, count, device) < keep_limit(density)


def keep_limit(density: float) -> int:
    """Give the bound that a word lies below with probability `density`: 0 to 2³²."""
    return int(Decimal(repr(density)) * 2**32)
