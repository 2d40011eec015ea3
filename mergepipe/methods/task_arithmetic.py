"""Add the weighted task vectors to the base.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023. https://arxiv.org/abs/2212.04089

    θ = θ_0 + λ Σ_i w_i τ_i,    τ_i = θ_i − θ_0

The paper picks one λ on validation data; 0.3 to 0.5 is usual for several experts. A negative
weight unlearns. With `normalize` the sum is divided by Σ_i w_i.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]), torch.tensor([1.0, 5.0])
>>> apply("task_arithmetic", base, {"a": a, "b": b}, lambda_=0.5)
tensor([1.5000, 3.0000])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.delta import add_packed, add_update, combine, packed_sum
from mergepipe.method import Block, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="factor on the model's task vector")


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.0, alias="lambda", description="factor on the sum of task vectors")
    normalize: bool = Field(False, description="divide the sum by the sum of the weights")


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """θ_0 + λ Σ_i w_i τ_i."""
    weights = [each.weight for each in block.each]
    weighted = [delta * w for delta, w in zip(block.deltas, weights, strict=True)]
    update = combine(weighted, weights, None, normalize=block.shared.normalize)
    return add_update(block.base, update, block.shared.lambda_)


def kernel(block: Block[Each, Shared], _: None, out: Out) -> None:
    """Do the same with a packed block."""
    add_packed(block, packed_sum(block), out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    kernel=kernel,
    against="mergekit 0.1.5",
)
