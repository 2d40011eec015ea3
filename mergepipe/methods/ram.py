"""Average the updates that several models made, and keep in full those that one model made.

Yuan et al., "Behavior Knowledge Merge in Reinforced Agentic Models" (RAM: reinforced agent
merging), 2026. https://arxiv.org/abs/2601.13572

    a_i = [|τ_i| > ε],    c = Σ_i a_i
    θ   = θ_0 + Σ_i a_i τ_i / max(1, c)

For models trained by reinforcement learning, whose task vectors are sparse: an average of all
models would divide what only one of them changed. Changes of at most ε are dropped. ε is absolute,
and smaller than a step of bfloat16 from 0.002 upwards: there every stored change counts.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(3), torch.tensor([4.0, 2.0, 1e-6]), torch.tensor([2.0, 0.0, 0.0])
>>> apply("ram", base, {"a": a, "b": b})
tensor([3., 2., 0.])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mergepipe.delta import add_update
from mergepipe.kernels import choose
from mergepipe.method import Block, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    epsilon: float = Field(1e-5, ge=0, description="what a parameter must change by, to count")


def add_active(block: Block[Any, Any], factors: Sequence[float]) -> Tensor:
    """Add the mean of what several models changed, and what only one did times its factor."""
    total = alone = count = block.deltas[0].new_zeros(())
    for delta, factor in zip(block.deltas, factors, strict=True):
        active = delta.abs() > block.shared.epsilon
        total = total + delta.where(active, 0.0)
        alone = alone + (delta * factor).where(active, 0.0)
        count = count + active
    return add_update(block.base, (total / count).where(count > 1, alone), 1.0)


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """θ_0 + Σ_i a_i τ_i / max(1, c)."""
    return add_active(block, [1.0] * len(block.labels))


def kernel(block: Block[Each, Shared], _: None, out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    choose.add_active(block.packed, block.shared.epsilon, [1.0] * len(block.labels), out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    kernel=kernel,
    against="mergekit 0.1.5",
)
