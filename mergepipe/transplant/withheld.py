"""Shared tokens that are withheld, to see how well their rows are made from the others'."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mergepipe.transplant.task import Ids

__all__ = ["FEWEST", "median_cosine", "withheld"]

FEWEST = 16  # shared tokens below which there is nothing to learn from
_SHARE = 4  # of the shared tokens, one in so many is withheld at most


def withheld(shared: int, count: int, seed: int) -> Ids:
    """Draw which of the shared tokens are withheld, ascending: `count`, or a fourth of them."""
    draws = np.random.Generator(np.random.Philox(key=seed))
    return np.sort(draws.permutation(shared)[: min(count, shared // _SHARE)])


def median_cosine(made: Tensor, true: Tensor, center: Tensor) -> float:
    """Give the median over rows of the cosine between made and true ones, less the centre.

    cos_t = ⟨y_t - m, p_t - m⟩ / (‖y_t - m‖ ‖p_t - m‖)
    """
    middle = center.cpu().double()
    cosines = torch.cosine_similarity(made.cpu().double() - middle, true.cpu().double() - middle)
    return float(cosines.median()) if len(cosines) else -1.0
