"""Interpolate between the base and one model along the arc between them.

Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985; applied to a whole tensor as
one vector, as mergekit does.

    c = ⟨θ_0, θ_1⟩ / (‖θ_0‖ ‖θ_1‖),   φ = arccos c
    θ = sin((1−t)φ)/sin φ · θ_0 + sin(tφ)/sin φ · θ_1

t = 0 is the base, t = 1 the model. Where |c| > 0.9995 the line is taken: (1−t)θ_0 + tθ_1. The
direction of a vector with norm below 1e-8 is the vector itself.

>>> from mergepipe.method import apply
>>> import torch
>>> apply("slerp", torch.tensor([1.0, 0.0]), {"a": torch.tensor([0.0, 1.0])}, t=0.5)
tensor([0.7071, 0.7071])
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from mergepipe.kernels.fused import weighted_sum
from mergepipe.kernels.sums import products
from mergepipe.method import Block, Method, Parameters, Scope, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

_STRAIGHT = 0.9995  # |cosine| above which the arc is taken for a line
_NO_NORM = 1e-8


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    t: float = Field(0.5, description="0 is the base, 1 the model")


def _products(block: Block[Each, Shared]) -> Statistics:
    if block.packed is not None:
        return {"products": products(block.packed)}
    assert block.base is not None, "slerp needs a base"
    a, b = block.base.double(), block.models[0].double()
    pairs = ((a, a), (b, b), (a, b))
    # Not torch.dot: BLAS may use threads of its own, and then their number changes the sum.
    return {"products": np.array([float((x * y).sum()) for x, y in pairs])}


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the coefficients of base and model from the tensor's norms and inner product."""
    t = scope.shared.t
    aa, bb, ab = map(float, (yield _products)["products"])
    norms = [norm if norm > _NO_NORM else 1.0 for norm in (math.sqrt(aa), math.sqrt(bb))]
    cosine = ab / (norms[0] * norms[1])
    if abs(cosine) > _STRAIGHT:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def merge(block: Block[Each, Shared], coefficients: tuple[float, float]) -> Tensor:
    """Combine the un-normalised tensors."""
    assert block.base is not None, "slerp needs a base"
    return block.base * coefficients[0] + block.models[0] * coefficients[1]


def kernel(block: Block[Each, Shared], coefficients: tuple[float, float], out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    weighted_sum(block.packed, coefficients, None, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, 1),
    survey=survey,
    sweeps=lambda _: 1,
    kernel=kernel,
    against="mergekit 0.1.5",
)
