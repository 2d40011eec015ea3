"""Average the models, each weighed by how far it moved from the base in that part of the model.

Wan et al., "FuseChat: Knowledge Fusion of Chat Models" (VaRM: variation ratio merge), 2024.
https://arxiv.org/abs/2402.16107

    w_{j,m} = E[Δθ_{j,m}²] / Σ_j E[Δθ_{j,m}²],    Δθ_{j,m} = θ_{j,m} − θ_{0,m}
    θ_m     = Σ_j w_{j,m} θ_{j,m}

The base is the paper's pivot. A unit m is a tensor (`unit: matrix`, the paper's best), a module (a
layer's attention, its MLP, each of its norms), a layer, or the model. As in the authors' code, the
E of a larger unit is a sum of means over its tensors; a tensor outside the layers is a unit of its
own, unless that is the model. Their code gives all models the same weight where one of them did not
move; here, as in the formula, that one has no weight, and where none moved, the base stays.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(2), torch.tensor([3.0, 3]), torch.tensor([1.0, -1])
>>> apply("varm", base, {"a": a, "b": b})
tensor([2.8000, 2.6000])
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import Field

from mergepipe.delta import add_packed, add_update, combine
from mergepipe.kernels.fused import Combine
from mergepipe.kernels.sums import square_sums
from mergepipe.method import Block, Method, Parameters, Scope, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

Unit: TypeAlias = Literal["matrix", "module", "layer", "model"]
_Means: TypeAlias = Mapping[tuple[str, str], float]  # E[Δθ²] by unit and model


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    unit: Unit = Field(
        "matrix", description="the parts of the model that have weights of their own"
    )


def scope(_: Each, shared: Shared) -> Hashable | None:
    """One scope per tensor, or one for all tensors."""
    return None if shared.unit == "matrix" else shared.unit


def unit_of(tensor: str, unit: Unit) -> str:
    """Name the unit that a tensor belongs to: its name's first parts.

    >>> unit_of("model.layers.3.self_attn.q_proj.weight", "module")
    'model.layers.3.self_attn'
    """
    if unit == "matrix":
        return tensor
    if unit == "model":
        return ""
    parts = tensor.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdecimal()), None)
    if number is None:
        return tensor
    return ".".join(parts[: number + (1 if unit == "layer" else 2)])


def _means(unit: Unit, block: Block[Each, Shared]) -> Statistics:
    if block.packed is not None:
        squares = [float(square) for square in square_sums(block.packed, None)]
    else:
        squares = [float(delta.double().square().sum()) for delta in block.deltas]
    key, size = unit_of(block.tensor, unit), max(block.target.numel, 1)
    return {(key, label): x / size for label, x in zip(block.labels, squares, strict=True)}


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find how far each model moved in each unit."""
    return (yield partial(_means, scope.shared.unit))


def weights_in(block: Block[Each, Shared], means: _Means) -> list[float]:
    """Give the weights of those models that have the tensor; zeros where none of them moved."""
    unit = unit_of(block.tensor, block.shared.unit)
    moved = [means[unit, label] for label in block.labels]
    total = sum(moved)
    return [one / total for one in moved] if total != 0 else moved


def merge(block: Block[Each, Shared], means: _Means) -> Tensor:
    """θ_0 + Σ_j w_j Δθ_j, the same since Σ_j w_j = 1."""
    weights = weights_in(block, means)
    weighted = [delta * w for delta, w in zip(block.deltas, weights, strict=True)]
    return add_update(block.base, combine(weighted, weights, None, normalize=False), 1.0)


def kernel(block: Block[Each, Shared], means: _Means, out: Out) -> None:
    """Do the same with a packed block."""
    add_packed(block, Combine(weights_in(block, means)), out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey,
    scope=scope,
    sweeps=lambda _: 1,
    kernel=kernel,
    against="its formula in numpy",
)
