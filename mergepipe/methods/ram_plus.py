"""Merge as RAM does, and make up for averages by enlarging what only one model changed.

Yuan et al., "Behavior Knowledge Merge in Reinforced Agentic Models" (RAM+), 2026.
https://arxiv.org/abs/2601.13572

    a_i = [|τ_i| > ε],    c = Σ_i a_i
    ρ_i = #{a_i = 1, c > 1} / #{a_i = 1, c = 1}
    λ_i = 1 + r min(ρ_i, α)
    θ   = θ_0 + Σ_i a_i τ_i / c  where c > 1,    θ_0 + λ_i τ_i  where only a_i = 1

Counts are over the model, as in the authors' code. mergekit counts in each tensor by itself, with
r = 0.1 and α = 0.2 (its `ramplus_tl`): `scope: tensor`, `r: 0.1`, `alpha: 0.2`.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(3), torch.tensor([4.0, 2.0, 1.0]), torch.tensor([2.0, 0.0, 0.0])
>>> apply("ram_plus", base, {"a": a, "b": b}, r=0.2)
tensor([3.0000, 2.2000, 1.1000])
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from mergepipe.kernels import choose
from mergepipe.method import Block, Method, Parameters, Scope, Statistics, Survey
from mergepipe.methods.ram import add_active

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    epsilon: float = Field(1e-5, ge=0, description="what a parameter must change by, to count")
    r: float = Field(0.2, ge=0, description="how much what one model changed grows, per ρ")
    alpha: float = Field(1.0, ge=0, description="largest ρ that counts")
    scope: Literal["model", "tensor"] = Field("model", description="where ρ is counted")


def scope(_: Each, shared: Shared) -> Hashable | None:
    """One scope per tensor, or one for all tensors."""
    return None if shared.scope == "tensor" else "model"


def _counts(block: Block[Each, Shared]) -> Statistics:
    """How many elements of each model are active in several models, and in it alone."""
    if block.packed is not None:
        counts = choose.count_active(block.packed, block.shared.epsilon)
        return dict(zip(block.labels, counts, strict=True))
    masks = [delta.abs() > block.shared.epsilon for delta in block.deltas]
    count = sum(mask.int() for mask in masks)
    return {
        label: np.array([int((mask & (count > 1)).sum()), int((mask & (count == 1)).sum())])
        for label, mask in zip(block.labels, masks, strict=True)
    }


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the factor λ_i of each model."""
    counts, shared = (yield _counts), scope.shared
    found = {}
    for label, (several, alone) in counts.items():
        ratio = float(several) / float(alone) if alone else shared.alpha
        found[label] = 1 + shared.r * min(ratio, shared.alpha)
    return found


def merge(block: Block[Each, Shared], factors: Mapping[str, float]) -> Tensor:
    """Average what several models changed, enlarge what one did, add."""
    return add_active(block, [factors[label] for label in block.labels])


def kernel(block: Block[Each, Shared], factors: Mapping[str, float], out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    own = [factors[label] for label in block.labels]
    choose.add_active(block.packed, block.shared.epsilon, own, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey,
    scope=scope,
    sweeps=lambda _: 1,
    kernel=kernel,
    against="mergekit 0.1.5",
)
