"""Scale what was merged by depth: little in the first layers, more in the last.

Wang et al., "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model
Merging", ICLR 2025. https://arxiv.org/abs/2410.17146

    θ^l = θ_0^l + (α + β l/(L−1)) τ^l,    l = 0 … L−1
    α   = ‖Σ_i τ_i‖ / (N ‖τ‖),            τ what was merged, less the base; over the model

Tensors outside of the layers are scaled by α. The paper tunes β on validation data for several
models (N > 1) and takes 1 − α for one, where α is chosen: without a β it is 1 − α here, so that
the last layer stays as merged. Each stack of layers (an encoder, a decoder) counts its own. After
`task_arithmetic` with λ = 1, α = 1/N.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(2), torch.tensor([4.0, 8.0]), torch.tensor([0.0, -2.0])
>>> apply("task_arithmetic", base, {"a": a, "b": b}, then=[("lines", {})])
tensor([2., 3.])
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from mergepipe.checkpoint import layer_of
from mergepipe.delta import add_update
from mergepipe.method import Block, Method, Parameters, Scope, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    alpha: float | None = Field(
        None, description="factor in the first layer, and outside of layers; by the norms if unset"
    )
    beta: float | None = Field(
        None, description="how much larger it is in the last layer; 1 - alpha if unset"
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What the survey tells `merge`: α, and the number of each stack's last layer."""

    alpha: float
    last: Mapping[str, int]


def scope(_: Each, shared: Shared) -> Hashable:
    """One scope for all tensors that are scaled alike."""
    return (shared.alpha, shared.beta)


def _squares(block: Block[Each, Shared]) -> Statistics:
    deltas = block.deltas
    pair = sum(deltas[1:], deltas[0]), block.update
    return {"squares": np.array([float(x.double().square().sum()) for x in pair])}


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Count the layers; find α where it is not given."""
    last: dict[str, int] = {}
    for stack, layer in filter(None, (layer_of(target.name) for target in scope.targets)):
        last[stack] = max(layer, last.get(stack, 0))
    alpha = scope.shared.alpha
    if alpha is None:
        summed, merged = map(float, (yield _squares)["squares"])
        alpha = math.sqrt(summed / merged) / len(scope.sizes) if merged else 0.0
    return Found(alpha, last)


def merge(block: Block[Each, Shared], found: Found) -> Tensor:
    """θ_0 + (α + β l/(L−1)) τ."""
    layer, alpha, beta = layer_of(block.tensor), found.alpha, block.shared.beta
    depth = 0.0
    if layer is not None and found.last[layer[0]]:
        depth = layer[1] / found.last[layer[0]]
    return add_update(
        block.base, block.update, alpha + (1 - alpha if beta is None else beta) * depth
    )


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey,
    scope=scope,
    sweeps=lambda shared: int(shared.alpha is None),
    against="its formula in numpy",
)
