"""Average the directions of several models, or of their task vectors, on the sphere.

Goddard, "Multi-SLERP: wow, what a cool idea", blog of mergekit's author, 2025.
https://goddard.blog/posts/multislerp-wow-what-a-cool-idea

    r_i = ‖x_i‖,    u_i = x_i / (r_i + ε),    μ = Σ_i w_i u_i / ‖Σ_i w_i u_i‖
    θ = (Σ_i w_i r_i) (μ cos ρ + v sin ρ / ρ),    v = Σ_i w_i (u_i − ⟨u_i, μ⟩ μ),    ρ = ‖v‖ + ε

x_i is a model's tensor as one vector, or its task vector where a base is named; θ is then added
to the base. Weights are divided by their sum (`normalize_weights`). Tangents at a mean cancel, so
v is 0 and ρ is ε: the result is the mean direction μ at the mean length, and no iteration towards
the Karcher mean (method `karcher`).

Where directions cancel, ‖Σ_i w_i u_i‖ below ε or 1e-6 Σ_i |w_i|, μ would be rounding: the line is
taken, θ = Σ_i w_i x_i. mergekit does so with two models and below ε, else it stops.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
>>> apply("multislerp", None, {"a": a, "b": b})
tensor([1.4142, 1.4142])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.delta import NO_WEIGHT, plain_divisor
from mergepipe.gram import add_weighted, add_weighted_packed, norm_of_sum, norms, survey_gram
from mergepipe.method import Block, Method, Parameters, Scope, Survey

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

_NO_DIRECTION = 1e-6  # length of a sum of unit vectors that fp32 rounding alone may give


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="share of the model")


class Shared(Parameters):
    """For the whole merge."""

    normalize_weights: bool = Field(True, description="divide weights by their sum")
    eps: float = Field(1e-8, gt=0, le=1, description="what lengths count as zero below")


def check(each: Sequence[Each], shared: Shared) -> None:
    """Refuse weights that cannot be normalised."""
    if shared.normalize_weights and abs(sum(one.weight for one in each)) < NO_WEIGHT:
        raise ValueError(
            "the weights sum to zero, so `normalize_weights: true` would divide by zero"
        )


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the models' coefficients from norms and inner products."""
    eps, weights = scope.shared.eps, [each.weight for each in scope.each.values()]
    divisor = plain_divisor(weights, normalize=scope.shared.normalize_weights) or 1.0
    weights = [weight / divisor for weight in weights]
    if len(weights) == 1:
        return (1.0,)
    gram = yield from survey_gram(len(weights))
    lengths = norms(gram)
    units = [w / (r + eps) for w, r in zip(weights, lengths, strict=True)]
    length = norm_of_sum(gram, units)
    if length < max(eps, _NO_DIRECTION * sum(map(abs, weights))):
        return tuple(weights)
    scale = sum(w * r for w, r in zip(weights, lengths, strict=True)) * math.cos(eps) / length
    return tuple(scale * unit for unit in units)


def merge(block: Block[Each, Shared], coefficients: tuple[float, ...]) -> Tensor:
    """Σ_i c_i x_i, and the base."""
    return add_weighted(block, coefficients)


def kernel(block: Block[Each, Shared], coefficients: tuple[float, ...], out: Out) -> None:
    """Do the same with a packed block."""
    add_weighted_packed(block, coefficients, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=False,
    optional_base=True,
    models=(1, None),
    check=check,
    survey=survey,
    sweeps=lambda _: 1,
    kernel=kernel,
    against="mergekit 0.1.5",
)
