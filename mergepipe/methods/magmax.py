"""Take each parameter's largest update among the task vectors, and add a share of it to the base.

Marczak, Twardowski, Trzciński and Cygert, "MagMax: Leveraging Model Merging for Seamless Continual
Learning", ECCV 2024. https://arxiv.org/abs/2407.06322

    θ = θ_0 + λ τ_{i*},    i* = argmax_i |τ_i|, element by element

λ = 0.5 is for models fine-tuned independently of one another; for models fine-tuned one after the
other, each from the one before, λ = 1. Of equal magnitudes the later model's counts, so there the
order of the models matters.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(3), torch.tensor([4.0, 1, -2]), torch.tensor([-2.0, -6, 2])
>>> apply("magmax", base, {"a": a, "b": b})
tensor([ 2., -3.,  1.])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.delta import add_update
from mergepipe.kernels.choose import add_largest
from mergepipe.method import Block, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(0.5, alias="lambda", description="factor on the selected updates")


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """Select, scale, add."""
    largest, *others = block.deltas
    for delta in others:
        largest = delta.where(delta.abs() >= largest.abs(), largest)
    return add_update(block.base, largest, block.shared.lambda_)


def kernel(block: Block[Each, Shared], _: None, out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    add_largest(block.packed, block.shared.lambda_, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    kernel=kernel,
    against="values by hand",
)
