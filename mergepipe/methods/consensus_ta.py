"""Add the task vectors up, and keep the sum only where it matters to enough of the models.

Wang et al., "Localizing Task Information for Improved Model Merging and Compression", ICML 2024.
https://arxiv.org/abs/2405.07813

    τ_MTL = Σ_i τ_i
    m_i   = [|τ_i| > λ_i |τ_MTL − τ_i|]    (the TALL mask)
    θ     = θ_0 + α τ_MTL [Σ_i m_i ≥ k]

α is `lambda` here, λ_i is `mask_lambda`. The authors choose λ_i per task from 0.2, 0.3, ..., 0.6,
so that θ_0 + m_i ⊙ τ_MTL serves the task best on validation data, then α from 0.1 to 1. The mask is
strict, as in their code, so that a parameter nobody changed is in no mask. A tensor that fewer than
k of the models have stays as in the base.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(3), torch.tensor([4.0, 4.0, 4.0]), torch.tensor([3.0, 1.0, -3.0])
>>> apply("consensus_ta", base, {"a": a, "b": b}, lambda_=0.5)
tensor([3.5000, 0.0000, 0.5000])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.delta import add_update
from mergepipe.kernels.choose import add_agreed
from mergepipe.method import Block, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    mask_lambda: float = Field(
        0.4, ge=0, description="how large an update must be beside the others' sum, to be in a mask"
    )


class Shared(Parameters):
    """For the whole merge."""

    k: int = Field(2, ge=1, description="how many masks a parameter must be in")
    lambda_: float = Field(1.0, alias="lambda", description="factor on what is kept of the sum")


def check(each: Sequence[Each], shared: Shared) -> None:
    """Refuse more masks than there are models."""
    if shared.k > len(each):
        msg = f"k is {shared.k}, but there are {len(each)} models"
        raise ValueError(msg)


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """θ_0 + α τ_MTL where at least k masks hold."""
    deltas, votes = block.deltas, block.models[0].new_zeros(())
    total = sum(deltas[1:], deltas[0])
    for delta, each in zip(deltas, block.each, strict=True):
        votes = votes + (delta.abs() > each.mask_lambda * (total - delta).abs())
    update = total.where(votes >= block.shared.k, 0.0)
    return add_update(block.base, update, block.shared.lambda_)


def kernel(block: Block[Each, Shared], _: None, out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    shared, shares = block.shared, [each.mask_lambda for each in block.each]
    add_agreed(block.packed, shares, shared.k, shared.lambda_, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(2, None),
    check=check,
    kernel=kernel,
    against="values by hand",
)
