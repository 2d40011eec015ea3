"""As iso_c, with the weakest common directions replaced by each task's own.

Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific
Subspaces", ICML 2025. https://arxiv.org/abs/2502.04959

    Σ_i Δ_i = U diag(σ) Vᵀ of rank k,    u = round((k − ⌊f k⌋) / N),    c = k − u N
    U_c = the first c columns of U;    U_i, σ_i, V_i = the first u triplets of Δ_i − U_c U_cᵀ Δ_i
    Û = [U_1 … U_N U_c], V̂ alike, each replaced by its polar factor
    W = W_0 + α σ̄ Û V̂ᵀ,    σ̄ = mean of all σ_i and of the c largest σ

round is to even; u is ⌊k (1 − f) / N⌋ where tasks would fill more than k. The authors' code takes
k = min(rows, columns) whatever the rank (`compat: reference`), which for LoRA experts fills the
update with directions that no expert uses. Vectors, embeddings and the head get the mean of the
task vectors, also times α.

>>> from mergepipe.method import apply
>>> import torch
>>> a = torch.tensor([[3.0, 0], [0, 1]])
>>> apply("iso_cts", torch.zeros(2, 2), {"a": a, "b": a}, common_fraction=0.5)
tensor([[4., 0.],
        [0., 4.]])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mergepipe.method import Block, Method, Parameters
from mergepipe.spectral import Embeddings, cut, decompose, merge_matrices, polar, top_count

if TYPE_CHECKING:
    from torch import Tensor


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    alpha: float = Field(1.0, description="factor on the merged task vector")
    common_fraction: float = Field(
        0.8, ge=0, le=1, description="fraction of the directions that stay common"
    )
    embeddings: Embeddings = False
    compat: Literal["none", "reference"] = Field(
        "none", description="directions up to the numerical rank, or all"
    )


def _counts(k: int, fraction: float, tasks: int) -> tuple[int, int]:
    """How many directions each task has of its own, and how many are common."""
    own = k - top_count(fraction, k)
    each = round(own / tasks)
    each = own // tasks if each * tasks > k else each
    return each, k - each * tasks


def _isotropic(deltas: list[Tensor], fraction: float, *, full: bool) -> Tensor:
    import torch

    u, s, vh = decompose(sum(deltas[1:], deltas[0]), full=full)
    each, common = _counts(len(s), fraction, len(deltas))
    u, s, vh = u[:, :common], s[:common], vh[:common]
    parts = []
    for delta in deltas if each else ():
        rest = delta - u @ (u.mT @ delta)
        # Relative to Δ_i: where U_c holds all of it, the rest is rounding.
        parts.append(decompose(rest, scale=float(delta.square().sum().sqrt()), full=full))
    us = torch.cat([*(part[0][:, :each] for part in parts), u], dim=1)
    ss = torch.cat([*(part[1][:each] for part in parts), s])
    vhs = torch.cat([*(part[2][:each] for part in parts), vh])
    mean = float(ss.sum()) / max(len(ss), 1)
    return polar(us, full=full)[0] @ polar(vhs, full=full)[0] * mean


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """W_0 + α σ̄ Û V̂ᵀ."""
    shared, full = block.shared, block.shared.compat == "reference"
    return merge_matrices(
        block, shared.alpha, lambda deltas: _isotropic(deltas, shared.common_fraction, full=full)
    )


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    cut=cut,
    against="fusion_bench's values",
)
