"""Keep the largest updates of one model, and add a share of them to the base.

Liu et al., "DLER: Doing Length pEnalty Right - Incentivizing More Intelligence per Token via
Reinforcement Learning" (section 4.6), 2025. https://arxiv.org/abs/2510.15110

    θ = θ_0 + scale · τ̂,    τ̂ keeps the k largest |τ| of its scope, k = max(1, ⌊density·n⌋)

The paper gives back a model's lost accuracy after reinforcement learning had shortened its answers
(density 0.25, scale 0.7). It does not say over what the largest are sought: here over the model,
or over each tensor by itself (`scope: tensor`). Where fewer than density·n elements differ from the
base at all, which is usual after reinforcement learning in bfloat16, only `scale` has an effect.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a = torch.ones(4), torch.tensor([1.0, 5.0, 2.0, -2.0])
>>> apply("update_selective", base, {"a": a}, {"a": {"density": 0.5, "scale": 0.5}})
tensor([ 1.0000,  3.0000,  1.0000, -0.5000])
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mergepipe.delta import add_packed, add_update
from mergepipe.kernels.fused import Combine
from mergepipe.method import Block, Method, Parameters, Scope, Survey
from mergepipe.trim import LARGEST_SWEEPS, Trim, band, keep_count, keep_largest, survey_largest

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    density: float = Field(0.25, ge=0, le=1, description="fraction of the scope that is kept")
    scale: float = Field(0.7, description="factor on what is kept")


class Shared(Parameters):
    """For the whole merge."""

    scope: Literal["model", "tensor"] = Field("model", description="where the largest are sought")


def scope(each: Each, shared: Shared) -> Hashable | None:
    """One scope per tensor, or one for all tensors with the same density."""
    return None if shared.scope == "tensor" else each.density


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the elements that stay."""
    counts = {label: keep_count(scope.each[label].density, n) for label, n in scope.sizes.items()}
    return (yield from survey_largest(scope.sizes, counts))


def merge(block: Block[Each, Shared], trims: Mapping[str, Trim]) -> Tensor:
    """θ_0 + scale · τ̂."""
    (kept,), (each,) = keep_largest(block, trims), block.each
    return add_update(block.base, kept, each.scale)


def kernel(block: Block[Each, Shared], trims: Mapping[str, Trim], out: Out) -> None:
    """Do the same with a packed block."""
    (label,), (each,) = block.labels, block.each
    add_packed(block, Combine([1.0], scale=each.scale), out, bands=[band(block, trims[label])])


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, 1),
    survey=survey,
    scope=scope,
    sweeps=lambda _: LARGEST_SWEEPS,
    kernel=kernel,
    against="its formula in numpy",
)
