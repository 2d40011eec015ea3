"""Random numbers that depend on (key, index) alone: Philox-4x32-10.

J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. Element i of a stream is
word i mod 4 of the block with counter i div 4, so that any slice of a tensor can be drawn alone:
chunking, threads, devices and resuming change nothing.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
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


@numba.njit(nogil=True, cache=True)
def _fill(key: np.uint64, start: np.uint64, out: NDArray[np.uint32]) -> None:  # pragma: no cover
    mask, shift = np.uint64(_MASK), np.uint64(32)
    end = start + np.uint64(out.size)
    block = start >> np.uint64(2)
    while (block << np.uint64(2)) < end:
        c0, c1, c2, c3 = block & mask, block >> shift, np.uint64(0), np.uint64(0)
        k0, k1 = key & mask, key >> shift
        for _ in range(_ROUNDS):
            p0, p1 = np.uint64(_M0) * c0, np.uint64(_M1) * c2
            c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & mask, (p0 >> shift) ^ c3 ^ k1, p0 & mask
            k0, k1 = (k0 + np.uint64(_W0)) & mask, (k1 + np.uint64(_W1)) & mask
        first = block << np.uint64(2)
        words = (c0, c1, c2, c3)
        for lane in range(4):
            index = first + np.uint64(lane)
            if start <= index < end:
                out[index - start] = np.uint32(words[lane])
        block += np.uint64(1)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Give the four 32-bit words of each counter, last dimension: int64 in [0, 2**32).

    64-bit products wrap, so their low word is exact, and the high word is exact after masking off
    the sign extension of the shift.
    """
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
    blocks = torch.arange(start // 4, (start + count + 3) // 4, device=device)
    zero = torch.zeros_like(blocks)
    counter = (blocks & _MASK, blocks >> 32, zero, zero)
    words = philox(counter, (key & _MASK, key >> 32)).flatten()
    return words[start % 4 : start % 4 + count]


def random_words(key: int, start: int, count: int) -> NDArray[np.uint32]:
    """Give words `start` to `start + count` of stream `key`: uint32, on the CPU."""
    out = np.empty(count, np.uint32)
    _fill(np.uint64(key), np.uint64(start), out)
    return out


def keep_mask(key: int, start: int, count: int, density: float, device: torch.device) -> Tensor:
    """Draw a Bernoulli(density) mask for `count` elements from index `start`: bool, 1-D.

    An element is kept when its 32-bit word is below density·2³², so the probability is exact to
    2⁻³².
    """
    if device.type != "cpu":
        return keep_mask_torch(key, start, count, density, device)
    return torch.from_numpy(random_words(key, start, count) < np.uint64(_limit(density)))


def keep_mask_torch(
    key: int, start: int, count: int, density: float, device: torch.device
) -> Tensor:
    """Define `keep_mask`, on any device."""
    return random_words_torch(key, start, count, device) < _limit(density)


def _limit(density: float) -> int:
    return int(Decimal(repr(density)) * 2**32)
