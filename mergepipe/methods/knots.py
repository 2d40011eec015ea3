"""Merge task matrices by element, after a rotation of their rows that aligns the tasks.

Stoica et al., "Model merging with SVD to tie the Knots", ICLR 2025.
https://arxiv.org/abs/2410.19735

    [Δ_1 | … | Δ_N] = U diag(σ) [V_1ᵀ | … | V_Nᵀ],    T_i = diag(σ) V_iᵀ = Uᵀ Δ_i
    W = W_0 + λ U T,    T = the T_i merged by TIES

up to the numerical rank. Made for LoRA adapters, whose updates hardly agree by element. Each
matrix is trimmed by itself; the authors trim over all matrices of the model together, so results
differ where `density` is below 1 (they keep everything for language models, with λ = 0.5).
`combine: linear` is task_arithmetic: a sum is the same in every basis. The authors' DARE-TIES is
not here. Vectors, embeddings and the head are combined by the same rule as they are.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([[3.0, 0], [3, 0]]), torch.tensor([[1.0, 0], [-1, 0]])
>>> apply("knots", torch.zeros(2, 2), {"a": a, "b": b})
tensor([[4., 0.],
        [2., 0.]])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mergepipe.aligned import (
    Each,
    combined,
    cut,
    merge_aligned,
    survey_others,
    sweeps,
    trimmed_matrix,
)
from mergepipe.method import Block, Method, Parameters
from mergepipe.spectral import Embeddings, decompose

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.trim import Trim


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.0, alias="lambda", description="factor on the merged task vector")
    combine: Literal["ties", "linear"] = Field(
        "ties", description="mean of what agrees in sign, or sum"
    )
    embeddings: Embeddings = False


def merge(block: Block[Each, Shared], trims: Mapping[str, Trim] | None) -> Tensor:
    """W_0 + λ U T."""
    import torch

    def tied(deltas: list[Tensor]) -> Tensor:
        # [Δ_1 | … | Δ_N] = Rᵀ Qᵀ has the U of the small Rᵀ.
        r = torch.linalg.qr(torch.cat(deltas, dim=1).mT, mode="r")[1]
        u, _, _ = decompose(r.mT)
        parts = [
            trimmed_matrix(u.mT @ delta, each.density)
            for delta, each in zip(deltas, block.each, strict=True)
        ]
        return u @ combined(block, parts)

    return merge_aligned(block, trims, tied)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey_others,
    sweeps=sweeps,
    cut=cut,
    against="its properties",
)
