"""Drop elements at random, small ones more often, rescale the rest, add them to the base.

Deep, Bhardwaj and Poria, "DELLA-Merging: Reducing Interference in Model Merging through
Magnitude-Based Sampling", 2024. https://arxiv.org/abs/2406.11617

    q_i = (density − ε) + 2ε (r − 1)/(c − 1),    r the rank of |τ_i|, ascending, in its row of c
    m_i ~ Bernoulli(q_i)  per element
    θ   = θ_0 + λ Σ_i w_i (m_i ⊙ τ_i) / q_i

This is `della` without the election of signs; rows, ranks, `rescale` and masks are as there.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a = torch.zeros(3), torch.tensor([1.0, -2, 3])  # q = 0.25, 0.5, 0.75
>>> each = {"density": 0.5, "epsilon": 0.25}
>>> apply("della_linear", base, {"a": a}, {"a": each}, seed=6)
tensor([4., 0., 4.])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.delta import LATE, add_packed, add_update, combine, packed_sum
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

    weight: float = Field(1.0, description="factor on the model's task vector")
    density: float = Field(0.5, ge=0, le=1, description="mean probability that an element stays")
    epsilon: float = Field(0.15, ge=0, description="half the range of those probabilities")


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.0, alias="lambda", description="factor on the sum of task vectors")
    normalize: bool = Field(False, description="divide the sum by the sum of the weights")
    rescale: Rescale = Field("inverse", description="what survivors are multiplied by")


def merge(block: Block[Each, Shared], factors: Mapping[str, float]) -> Tensor:
    """θ_0 + λ Σ_i w_i τ̂_i."""
    weights = [each.weight for each in block.each]
    weighted = [delta * w for delta, w in zip(prune(block, factors), weights, strict=True)]
    update = combine(weighted, weights, None, normalize=block.shared.normalize)
    return add_update(block.base, update, block.shared.lambda_)


def kernel(block: Block[Each, Shared], factors: Mapping[str, float], out: Out) -> None:
    """Do the same with a packed block."""
    how = replace(packed_sum(block), given=True)
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
