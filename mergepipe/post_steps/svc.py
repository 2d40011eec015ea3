"""Shrink those directions of what was merged that several experts share and so count twice.

Li et al., "When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging", 2026.
https://arxiv.org/abs/2602.05536

    Δ = U diag(σ) Vᵀ, what was merged, less the base
    s_i = ⟨u_rᵀΔ, u_rᵀΔ_i⟩ / ‖u_rᵀΔ_i‖²,    γ_r = N / Σ_i max(α, s_i),    σ_r ← γ_r σ_r

α is 0.1 after task_arithmetic, ties, dare and iso_c, 0.2 after iso_cts, 1 after tsv_m and wudi.
Vectors, embeddings and the head stay as merged.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, 0]])
>>> apply("task_arithmetic", torch.zeros(2, 2), {"a": a, "b": b}, then=[("svc", {})])
tensor([[1.0000, 0.0000],
        [0.0000, 1.8182]])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.delta import add_update
from mergepipe.method import Block, Method, Parameters
from mergepipe.spectral import Embeddings, all_finite, as_matrices, cut, decompose, is_taken_apart

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_ENERGY = 1e-12  # of a projection; the authors' guard against a division by 0


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    alpha: float = Field(0.1, gt=0, description="least that a task counts in a direction")
    embeddings: Embeddings = False


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """W_0 + U diag(γ σ) Vᵀ."""
    assert block.merged is not None, "a post-step comes after a merge"
    shared = block.shared
    if not is_taken_apart(shared, block.target) or not all_finite((block.merged,)):
        return block.merged
    (update,) = as_matrices(block, (block.update,))
    u, s, vh = decompose(update)
    counted = s * 0
    for delta in as_matrices(block, block.deltas):
        own = u.mT @ delta
        overlap = s * (vh * own).sum(1) / own.square().sum(1).clamp(min=_LEAST_ENERGY)
        counted = counted + overlap.clamp(min=shared.alpha)
    calibrated = u * (s * len(block.models) / counted) @ vh
    return add_update(block.base, calibrated.float().flatten(), 1.0)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    cut=cut,
    against="fusion_bench's values",
)
