"""Add the task matrices up, and give the sum one singular value in all directions.

Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific
Subspaces", ICML 2025. https://arxiv.org/abs/2502.04959

    Σ_i Δ_i = U diag(σ) Vᵀ,    σ̄ = 1/r Σ_j σ_j
    W = W_0 + α σ̄ U Vᵀ

r is the numerical rank. The authors' code averages over all min(rows, columns) values and fills
directions that no expert uses with whatever the solver returns (`compat: reference`): for LoRA
experts most of the update is then noise. Vectors, embeddings and the head get the mean of the task
vectors, also times α. The authors tune α on validation data, up to 3.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([[3.0, 0], [0, 0]]), torch.tensor([[0, 0], [0, 1.0]])
>>> apply("iso_c", torch.zeros(2, 2), {"a": a, "b": b})
tensor([[2., 0.],
        [0., 2.]])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mergepipe.method import Block, Method, Parameters
from mergepipe.spectral import Embeddings, cut, merge_matrices, polar

if TYPE_CHECKING:
    from torch import Tensor


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    alpha: float = Field(1.0, description="factor on the merged task vector")
    embeddings: Embeddings = False
    compat: Literal["none", "reference"] = Field(
        "none", description="flatten up to the numerical rank, or all directions"
    )


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """W_0 + α σ̄ U Vᵀ."""
    shared = block.shared

    def flattened(deltas: list[Tensor]) -> Tensor:
        factor, s = polar(sum(deltas[1:], deltas[0]), full=shared.compat == "reference")
        return factor * (float(s.sum()) / max(len(s), 1))

    return merge_matrices(block, shared.alpha, flattened)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    cut=cut,
    against="fusion_bench's values",
)
