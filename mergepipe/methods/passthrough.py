"""Copy one model's parameters, optionally scaled.

Used to take a tensor as it is, or to damp some (a `where` rule with `scale: 0` on `o_proj` and
`down_proj` makes an inserted layer start as the identity).

    θ = s·θ_1

>>> from mergepipe.method import apply
>>> import torch
>>> apply("passthrough", None, {"a": torch.tensor([1.0, -2.0])}, {"a": {"scale": 0.5}})
tensor([ 0.5000, -1.0000])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.kernels.fused import weighted_sum
from mergepipe.method import Block, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    scale: float = Field(1.0, description="factor on every element")


class Shared(Parameters):
    """For the whole merge."""


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """s·θ_1; bit for bit θ_1 when s = 1."""
    (model,), (each,) = block.models, block.each
    return model if each.scale == 1.0 else model * each.scale


def kernel(block: Block[Each, Shared], _: None, out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    weighted_sum(block.packed, [block.each[0].scale], None, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=False,
    models=(1, 1),
    kernel=kernel,
    against="mergekit 0.1.5",
)
