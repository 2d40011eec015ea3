"""The projection of scores onto the probability simplex.

Martins and Astudillo, "From Softmax to Sparsemax", ICML 2016. https://arxiv.org/abs/1602.02068
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sparsemax"]

_FIRST = 64  # scores that are sorted at first; more where the support is larger


def sparsemax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Give the support's columns and weights, descending: both [n, k], padded with -1 and 0.

    With z sorted descending, m the largest with 1 + m z_m > Σ_{j≤m} z_j, and
    θ = (Σ_{j≤m} z_j - 1) / m: w = max(z - θ, 0). Computed in fp64. k is the largest support.

    >>> sparsemax(torch.tensor([[0.5, 1.0, -2.0]]))
    (tensor([[1, 0]]), tensor([[0.7500, 0.2500]]))
    """
    count = min(_FIRST, scores.shape[1])
    while True:
        top, columns = scores.topk(count, 1)
        # Shifted, so that equal shifts of all scores change nothing, not even the last bit.
        z = top.double() - top[:, :1].double()
        sums = z.cumsum(1)
        ranks = torch.arange(1, count + 1, device=scores.device)
        inside = 1 + ranks * z > sums
        size = inside.sum(1, keepdim=True)
        if count == scores.shape[1] or int(size.max()) < count:
            break
        count = min(2 * count, scores.shape[1])
    theta = (sums.gather(1, size - 1) - 1) / size
    weights = (z - theta).clamp(min=0)
    width = int(size.max())
    kept = weights[:, :width] > 0
    return torch.where(kept, columns[:, :width], -1), weights[:, :width].float()
