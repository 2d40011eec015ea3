"""Dynamic time warping: the cheapest way through a matrix of costs."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel

__all__ = ["warp"]

_Costs: TypeAlias = NDArray[np.float32]
_Codes: TypeAlias = NDArray[np.int64]


@kernel
def warp(
    first: _Codes, second: _Codes, costs: _Costs, up_first: bool
) -> NDArray[np.int64]:  # pragma: no cover
    """Give the steps (i, j) of the cheapest path, from the ends to the starts.

    The cost of i beside j is `costs[first[i], second[j]]`. Of predecessors that cost the same the
    diagonal one is taken, then (i - 1, j) or (i, j - 1), as `up_first` says.
    """
    n, m = first.size, second.size
    total = np.empty((n, m), np.float64)
    for i in range(n):
        row = costs[first[i]]
        for j in range(m):
            least = 0.0 if i == 0 and j == 0 else np.inf
            if i > 0:
                least = min(least, total[i - 1, j])
            if j > 0:
                least = min(least, total[i, j - 1])
            if i > 0 and j > 0:
                least = min(least, total[i - 1, j - 1])
            total[i, j] = row[second[j]] + least
    path = np.empty((n + m, 2), np.int64)
    i, j, size = n - 1, m - 1, 0
    while i > 0 or j > 0:
        path[size, 0], path[size, 1] = i, j
        size += 1
        diagonal = total[i - 1, j - 1] if i > 0 and j > 0 else np.inf
        up = total[i - 1, j] if i > 0 else np.inf
        left = total[i, j - 1] if j > 0 else np.inf
        if diagonal <= up and diagonal <= left:
            i -= 1
            j -= 1
        elif up < left or (up == left and up_first):
            i -= 1
        else:
            j -= 1
    path[size, 0], path[size, 1] = 0, 0
    return path[: size + 1]
