"""Average, and add back the strongest directions in which each model differs from the average.

Choi et al., "Revisiting Weight Averaging for Model Merging", 2024.
https://arxiv.org/abs/2412.12153

    W̄ = 1/N Σ_i W_i,    W = W̄ + α Σ_i SVD_k(W_i − W̄),    k = max(1, ⌊rank·min(rows, columns)⌋)

SVD_k is the nearest matrix of rank k. The authors keep 8 % of the directions, and tune α on
validation data or take 1 to 2. Vectors, embeddings and the head are averaged.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([[4.0, 0], [0, 2]]), torch.tensor([[0.0, 0], [0, 0]])
>>> apply("cart", None, {"a": a, "b": b}, alpha=0.5)
tensor([[2., 0.],
        [0., 1.]])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.method import Block, Method, Parameters
from mergepipe.spectral import (
    Embeddings,
    all_finite,
    as_matrices,
    cut,
    decompose,
    is_taken_apart,
    mean,
    top_count,
)

if TYPE_CHECKING:
    from torch import Tensor


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    alpha: float = Field(1.0, description="factor on what is added back")
    rank: float = Field(0.08, ge=0, le=1, description="fraction of the directions added back")
    embeddings: Embeddings = False


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """W̄ + α Σ_i SVD_k(W_i − W̄)."""
    shared = block.shared
    if not is_taken_apart(shared, block.target) or not all_finite(block.models):
        return mean(block.models)
    models = as_matrices(block, block.models)
    centre = sum(models[1:], models[0]) / len(models)
    count = max(1, top_count(shared.rank, min(centre.shape)))
    merged = centre
    for model in models:
        u, s, vh = decompose(model - centre, scale=float(model.square().sum().sqrt()))
        merged = merged + shared.alpha * ((u[:, :count] * s[:count]) @ vh[:count])
    return merged.float().flatten()


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=False,
    models=(1, None),
    cut=cut,
    against="its laws",
)
