"""Random numbers that depend on a key and on where they stand alone, however they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.random import random_words

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Noise", "normals", "uniforms"]


def uniforms(key: int, start: int, count: int) -> NDArray[np.float64]:
    """Give numbers `start` to `start + count` of a stream, uniform over (0, 1)."""
    return (random_words(key, start, count) + 0.5) / 2**32


def normals(key: int, start: int, count: int) -> NDArray[np.float64]:
    """Give numbers `start` to `start + count` of a stream, normal with deviation 1.

    G. Box, M. Muller, "A Note on the Generation of Random Normal Deviates", 1958, which makes one
    normal number of two uniform ones:

        z = √(-2 ln u) · cos(2π v)

    """
    u, v = uniforms(key, 2 * start, 2 * count).reshape(-1, 2).T
    z: NDArray[np.float64] = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
    return z


@dataclass(frozen=True, slots=True)
class Noise:
    """A tensor of normal numbers that are made when they are read."""

    key: int

    def __getitem__(self, run: slice) -> Tensor:
        """Give a run of it: fp32."""
        import torch

        values = normals(self.key, run.start, run.stop - run.start)
        return torch.from_numpy(values.astype(np.float32))
