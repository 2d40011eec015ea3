"""Keep each task matrix's strongest singular directions, made orthogonal to the other tasks'.

Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model Merging", CVPR 2025.
https://arxiv.org/abs/2412.00081

    Δ_i = U_i diag(σ_i) V_iᵀ,    the first u = max(1, ⌊min(rows, columns) / N⌋) triplets of each
    Û = [U_1 … U_N] = P Σ Qᵀ,    Û⊥ = P Qᵀ,    V̂⊥ alike
    W = W_0 + α Û⊥ diag([σ_1 … σ_N]) V̂⊥ᵀ

A task matrix of lower rank gives fewer triplets, a zero one none. The authors' code takes u of
each, so that singular vectors that mean nothing turn those that do (`compat: reference`; it fails
for N > min(rows, columns)). Vectors, embeddings and the head get the mean of the task vectors,
also times α.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([[3.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, 2]])
>>> apply("tsv_m", torch.zeros(2, 2), {"a": a, "b": b})
tensor([[3., 0.],
        [0., 2.]])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mergepipe.method import Block, Method, Parameters
from mergepipe.spectral import Embeddings, cut, merge_matrices, orthogonalised

if TYPE_CHECKING:
    from torch import Tensor


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    alpha: float = Field(1.0, description="factor on the merged task vector")
    embeddings: Embeddings = False
    compat: Literal["none", "reference"] = Field(
        "none", description="triplets up to a task matrix's numerical rank, or u of each"
    )


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """W_0 + α Û⊥ diag(σ) V̂⊥ᵀ."""
    shared, full = block.shared, block.shared.compat == "reference"
    return merge_matrices(block, shared.alpha, lambda deltas: orthogonalised(deltas, full=full))


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    cut=cut,
    against="fusion_bench's values",
)
