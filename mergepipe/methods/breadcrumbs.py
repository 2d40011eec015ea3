"""Drop the largest and the smallest elements of each task vector, add the rest to the base.

Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse
Masks", ECCV 2024. https://arxiv.org/abs/2312.06795

    m_i = the ⌊density·n⌋ largest |τ_i| below the ⌊gamma·n⌋ largest
    θ   = θ_0 + λ Σ_i w_i (m_i ⊙ τ_i)

n is the size of the tensor (`scope: tensor`, as in mergekit: where density + gamma > 1, fewer of
the largest are dropped) or the length of a row, along the last dimension (`scope: row`, the
authors' code: then density is a share of the whole row and less may stay). The paper's sparsity
is 1 − density; the authors' example has density 0.2, gamma 0.1, λ = 0.4.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a = torch.zeros(5), torch.tensor([9.0, -1, 2, -3, 4])
>>> apply("breadcrumbs", base, {"a": a}, {"a": {"density": 0.4, "gamma": 0.2}})
tensor([ 0.,  0.,  0., -3.,  4.])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.breadcrumbs import (
    Found,
    MaskScope,
    add_banded,
    cut,
    drop_tails,
    has_kernel,
    survey_tails,
    tail_sweeps,
)
from mergepipe.delta import LATE, add_update, combine, packed_sum
from mergepipe.method import Block, Method, Parameters
from mergepipe.rescale import Restore

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="factor on the model's task vector")
    density: float = Field(0.2, ge=0, le=1, description="fraction of the scope that is kept")
    gamma: float = Field(0.01, ge=0, le=1, description="fraction dropped as too large")


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.0, alias="lambda", description="factor on the sum of task vectors")
    normalize: bool = Field(False, description="divide the sum by the sum of the weights")
    rescale: Restore = Field("none", description="whether the L1 norm before masking is restored")
    scope: MaskScope = Field("tensor", description="where largest and smallest are sought")


def merge(block: Block[Each, Shared], found: Found) -> Tensor:
    """θ_0 + λ Σ_i w_i (m_i ⊙ τ_i)."""
    weights = [each.weight for each in block.each]
    weighted = [delta * w for delta, w in zip(drop_tails(block, found), weights, strict=True)]
    update = combine(weighted, weights, None, normalize=block.shared.normalize)
    return add_update(block.base, update, block.shared.lambda_)


def kernel(block: Block[Each, Shared], found: Found, out: Out) -> None:
    """Do the same with a packed block."""
    add_banded(block, packed_sum(block), found.tails, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey_tails,
    late=lambda _: LATE,
    sweeps=tail_sweeps,
    cut=cut,
    kernel=kernel,
    has_kernel=has_kernel,
    against="mergekit 0.1.5",
)
