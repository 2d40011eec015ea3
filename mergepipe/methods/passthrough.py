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

from pydantic import Field
from torch import Tensor

from mergepipe.method import Block, Method, Parameters


class Each(Parameters):
    """Per model."""

    scale: float = Field(1.0, description="factor on every element")


class Shared(Parameters):
    """For the whole merge."""


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """s·θ_1; bit for bit θ_1 when s = 1."""
    (model,), (each,) = block.models, block.each
    return model if each.scale == 1.0 else model * each.scale


METHOD = Method(Each, Shared, merge, needs_base=False, models=(1, 1))
