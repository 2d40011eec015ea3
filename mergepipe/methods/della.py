"""Drop elements at random, small ones more often, then elect signs and average as TIES does.

Deep, Bhardwaj and Poria, "DELLA-Merging: Reducing Interference in Model Merging through
Magnitude-Based Sampling", 2024. https://arxiv.org/abs/2406.11617

    q_i = (density − ε) + 2ε (r − 1)/(c − 1),    r the rank of |τ_i|, ascending, in its row of c
    m_i ~ Bernoulli(q_i)  per element,    τ̂_i = (m_i ⊙ τ_i) / q_i
    s   = sgn(Σ_i w_i τ̂_i)
    θ   = θ_0 + λ Σ_i w_i τ̂_i [sgn(w_i τ̂_i) = s] / Σ_i w_i [sgn(w_i τ̂_i) = s]

A row runs along the last dimension; a 1-D tensor is one row. `density` is 1 − p of the paper, ε
half its window. `rescale: l1` restores each tensor's L1 norm instead of dividing by q (mergekit).
Of equal magnitudes the first has the lower rank. The mask of an element depends on its q, the
recipe's `seed`, the model's label, the tensor's name and the element's index alone.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(3), torch.tensor([1.0, 2, 3]), torch.tensor([3.0, -4, 3])
>>> apply("della", base, {"a": a, "b": b}, {"a": {"density": 1.0}, "b": {"density": 1.0}})
tensor([ 2., -4.,  3.])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.delta import (
    LATE,
    Election,
    add_packed,
    add_update,
    agreeing,
    combine,
    packed_election,
)
from mergepipe.magprune import (
    Rescale,
    by_rows,
    check_probabilities,
    prune,
    pruned,
    rescale_sweeps,
    survey_rescale,
)
from mergepipe.method import Block, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="factor on the task vector; also its vote")
    density: float = Field(0.5, ge=0, le=1, description="mean probability that an element stays")
    epsilon: float = Field(0.15, ge=0, description="half the range of those probabilities")


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.0, alias="lambda", description="factor on the merged task vector")
    normalize: bool = Field(True, description="divide by the weights that agree")
    rescale: Rescale = Field("inverse", description="what survivors are multiplied by")
    elect: Election = Field("sum", description="what a sum of zero elects")


def merge(block: Block[Each, Shared], factors: Mapping[str, float]) -> Tensor:
    """Drop, rescale, elect, disjoint mean, add."""
    weights = [each.weight for each in block.each]
    weighted = [delta * w for delta, w in zip(prune(block, factors), weights, strict=True)]
    masks = agreeing(weighted, block.shared.elect)
    update = combine(weighted, weights, masks, normalize=block.shared.normalize)
    return add_update(block.base, update, block.shared.lambda_)


def kernel(block: Block[Each, Shared], factors: Mapping[str, float], out: Out) -> None:
    """Do the same with a packed block."""
    how = replace(packed_election(block), given=True)
    add_packed(replace(block, packed=pruned(block, factors)), how, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey_rescale,
    late=lambda _: LATE,
    check=check_probabilities,
    sweeps=rescale_sweeps,
    cut=by_rows,
    kernel=kernel,
    against="mergekit 0.1.5, in its probabilities",
)
