"""Merge low-rank task matrices in the small space that they span together.

Panariello, Marczak et al., "Accurate and Efficient Low-Rank Model Merging in Core
Space", NeurIPS 2025. https://arxiv.org/abs/2509.17786

    Δ_i = B_i A_i,    U = left singular vectors of [B_1 … B_N],    V = right ones of [A_1; … A_N]
    M_i = Uᵀ Δ_i V,    W = W_0 + λ U M Vᵀ,    M = the M_i merged

Nothing is lost: Δ_i = U M_i Vᵀ. Task matrices come whole, so B_i = P √S and A_i = √S Qᵀ of
Δ_i = P S Qᵀ, up to its numerical rank, in place of an adapter's factors: `ties`, which depends on
the basis, gives other numbers than with those. `linear` is task_arithmetic: a sum is the same in
every basis. `tsv` is tsv_m with the size of M in place of Δ_i's. Task matrices of full rank are
merged as well, but gain nothing. Vectors, embeddings and the head are combined as they are; by
`tsv` they get the weighted mean.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([[2.0, 2], [0, 0]]), torch.tensor([[0.0, 0], [1, -1]])
>>> apply("core_space", torch.zeros(2, 2), {"a": a, "b": b}, combine="tsv")
tensor([[ 2.,  2.],
        [ 1., -1.]])
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
from mergepipe.spectral import Embeddings, decompose, orthogonalised

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.trim import Trim


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.0, alias="lambda", description="factor on the merged task vector")
    combine: Literal["tsv", "ties", "linear"] = Field(
        "tsv", description="top singular directions made orthogonal, mean of what agrees, or sum"
    )
    embeddings: Embeddings = False


def _bases(deltas: list[Tensor]) -> tuple[Tensor, Tensor]:
    """U and Vᵀ."""
    import torch

    parts = [decompose(delta) for delta in deltas]
    left, _, _ = decompose(torch.cat([u * s.sqrt() for u, s, _ in parts], dim=1))
    _, _, right = decompose(torch.cat([s.sqrt()[:, None] * vh for _, s, vh in parts]))
    return left, right


def merge(block: Block[Each, Shared], trims: Mapping[str, Trim] | None) -> Tensor:
    """W_0 + λ U M Vᵀ."""

    def in_core_space(deltas: list[Tensor]) -> Tensor:
        left, right = _bases(deltas)
        cores = [left.mT @ delta @ right.mT for delta in deltas]
        if block.shared.combine == "tsv":
            weights = [each.weight for each in block.each]
            core = orthogonalised([m * w for m, w in zip(cores, weights, strict=True)])
        else:
            densities = [each.density for each in block.each]
            kept = [trimmed_matrix(m, d) for m, d in zip(cores, densities, strict=True)]
            core = combined(block, kept)
        return left @ core @ right

    return merge_aligned(block, trims, in_core_space)


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
