"""Drop the largest and the smallest elements of each task vector, then elect signs as TIES does.

The mask is that of Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with
Sparse Masks", ECCV 2024; the election that of Yadav et al., "TIES-Merging: Resolving Interference
When Merging Models", NeurIPS 2023; mergekit put them together.
https://arxiv.org/abs/2312.06795, https://arxiv.org/abs/2306.01708

    m_i = the ⌊density·n⌋ largest |τ_i| below the ⌊gamma·n⌋ largest,    τ̂_i = m_i ⊙ τ_i
    s   = sgn(Σ_i w_i τ̂_i)
    θ   = θ_0 + λ Σ_i w_i τ̂_i [sgn(w_i τ̂_i) = s]

`normalize: true` divides by Σ_i w_i [sgn(w_i τ̂_i) = s], as TIES does. `scope` is that of
`breadcrumbs`. Where the signed sum is 0, nobody is elected; mergekit elects + (`elect: mergekit`).

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(4), torch.tensor([9.0, 3, 2, 1]), torch.tensor([1.0, 2, -3, 9])
>>> each = {"density": 0.5, "gamma": 0.25}
>>> apply("breadcrumbs_ties", base, {"a": a, "b": b}, {"a": each, "b": each})
tensor([ 0.,  5., -3.,  0.])
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
from mergepipe.delta import LATE, Election, add_update, agreeing, combine, packed_election
from mergepipe.method import Block, Method, Parameters
from mergepipe.rescale import Restore

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="factor on the task vector; also its vote")
    density: float = Field(0.2, ge=0, le=1, description="fraction of the scope that is kept")
    gamma: float = Field(0.01, ge=0, le=1, description="fraction dropped as too large")


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.0, alias="lambda", description="factor on the merged task vector")
    normalize: bool = Field(False, description="divide by the weights that agree")
    rescale: Restore = Field("none", description="whether the L1 norm before masking is restored")
    scope: MaskScope = Field("tensor", description="where largest and smallest are sought")
    elect: Election = Field("sum", description="what a sum of zero elects")


def merge(block: Block[Each, Shared], found: Found) -> Tensor:
    """Drop both tails, elect, disjoint sum or mean, add."""
    weights = [each.weight for each in block.each]
    weighted = [delta * w for delta, w in zip(drop_tails(block, found), weights, strict=True)]
    masks = agreeing(weighted, block.shared.elect)
    update = combine(weighted, weights, masks, normalize=block.shared.normalize)
    return add_update(block.base, update, block.shared.lambda_)


def kernel(block: Block[Each, Shared], found: Found, out: Out) -> None:
    """Do the same with a packed block."""
    add_banded(block, packed_election(block), found.tails, out)


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
