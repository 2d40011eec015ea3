"""Drop elements of each task vector at random, rescale the rest, add them to the base.

Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free
Lunch", ICML 2024. https://arxiv.org/abs/2311.03099

    m_i ~ Bernoulli(density)  per element
    θ   = θ_0 + λ Σ_i w_i (m_i ⊙ τ_i) / density

`density` is 1 − p of the paper. `rescale: l1` restores each tensor's L1 norm instead (mergekit).
The mask of an element depends on the recipe's `seed`, the model's label, the tensor's name and
the element's index, and on nothing else.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a = torch.zeros(8), torch.ones(8)
>>> apply("dare_linear", base, {"a": a}, {"a": {"density": 0.5}}, seed=1).unique()
tensor([0., 2.])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.delta import LATE, add_packed, add_update, combine, packed_sum
from mergepipe.dropout import Rescale, draws, drop, rescale_sweeps, survey_rescale
from mergepipe.method import Block, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="factor on the model's task vector")
    density: float = Field(0.5, ge=0, le=1, description="probability that an element stays")


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.0, alias="lambda", description="factor on the sum of task vectors")
    normalize: bool = Field(False, description="divide the sum by the sum of the weights")
    rescale: Rescale = Field("inverse", description="what survivors are multiplied by")


def merge(block: Block[Each, Shared], factors: Mapping[str, float]) -> Tensor:
    """θ_0 + λ Σ_i w_i τ̂_i."""
    weights = [each.weight for each in block.each]
    weighted = [delta * w for delta, w in zip(drop(block, factors), weights, strict=True)]
    update = combine(weighted, weights, None, normalize=block.shared.normalize)
    return add_update(block.base, update, block.shared.lambda_)


def kernel(block: Block[Each, Shared], factors: Mapping[str, float], out: Out) -> None:
    """Do the same with a packed block."""
    how = replace(packed_sum(block), factors=[factors[label] for label in block.labels])
    add_packed(block, how, out, draws=draws(block))


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey_rescale,
    late=lambda _: LATE,
    sweeps=rescale_sweeps,
    kernel=kernel,
    against="mergekit 0.1.5, in distribution",
)
