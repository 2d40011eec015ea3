"""Move each parameter of the base towards the model's, by t at most.

alchemonaut, "QuartetAnemoi-70B-t0.0001", model card, 2024.
https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001

    θ = w θ_1 + (1−w) θ_0,    w = clip(t / |τ|, 0, 1),    τ = θ_1 − θ_0
      = θ_0 + clip(τ, −t, t)

Parameters that are nearer to one another than t are the model's, so a small t takes only what
hardly differs. mergekit takes |τ| for 1e-6 at least, so that t below 1e-6 moves less there.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.25, 3.0, -1.0])
>>> apply("nearswap", base, {"a": a}, t=0.5)
tensor([1.2500, 1.5000, 0.5000])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.kernels.choose import move_near
from mergepipe.method import Block, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    t: float = Field(1e-4, ge=0, description="how far a parameter moves, at most")


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """θ_1 where it is near, else θ_0 ± t; θ_0 where they are equal."""
    assert block.base is not None, "nearswap needs a base"
    (delta,), (model,), t = block.deltas, block.models, block.shared.t
    moved = block.base + delta.clamp(-t, t)
    return block.base.where(delta == 0, model.where(delta.abs() <= t, moved))


def kernel(block: Block[Each, Shared], _: None, out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    move_near(block.packed, block.shared.t, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, 1),
    kernel=kernel,
    against="mergekit 0.1.5",
)
