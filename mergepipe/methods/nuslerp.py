"""Interpolate between two models along the arc between them, or between their task vectors.

Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985; of two models as mergekit's
NuSLERP does. https://github.com/arcee-ai/mergekit

    t = w_b / (w_a + w_b),    c = ⟨a, b⟩ / (‖a‖ ‖b‖),    φ = arccos c
    θ = sin((1−t)φ)/sin φ · a + sin(tφ)/sin φ · b

Where a base is named, a and b are task vectors and θ is added to it. By default a tensor is one
vector. With `flatten: false` each row W[i, :] is one, with `row_wise` as well (the name is
mergekit's) each column W[:, j]; a tensor of one dimension is one vector always. In a stack of
matrices the columns are those of each matrix, where mergekit's run across the stack.

Weights that sum to 0 give t = 1/2. The line is taken where 1 − c² < 1e-8, which only matters for
opposite vectors: the arc between them is anyone's guess, and mergekit's limit of 1e-16 leaves it
to rounding. Norms below 1e-7 count as 1e-7.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
>>> apply("nuslerp", None, {"a": a, "b": b}, {"b": {"weight": 2.0}})
tensor([0.5000, 1.7321])
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mergepipe.delta import add_update
from mergepipe.gram import add_weighted, add_weighted_packed, survey_gram, vectors
from mergepipe.method import Block, Cut, Method, Parameters, Scope, Statistics, Survey, Target

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

Numbers: TypeAlias = NDArray[np.float64]
_STRAIGHT = 1e-8  # 1 − c² below which the arc is taken for a line
_LEAST_NORM = 1e-7
_NO_WEIGHT = 1e-6


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="share of the model; only the ratio matters")


class Shared(Parameters):
    """For the whole merge."""

    flatten: bool = Field(True, description="take a tensor for one vector, not for many")
    row_wise: bool = Field(
        False, description="without `flatten`: vectors are columns W[:, j], not rows W[i, :]"
    )


def cut(shared: Shared, _: Target) -> Cut:
    """Whole rows, unless a tensor is one vector."""
    return "anywhere" if shared.flatten else "rows"


def _coefficients(products: Sequence[float] | Numbers, each: Sequence[Each]) -> Numbers:
    """Those of a and b from ⟨a, a⟩, ⟨b, b⟩ and ⟨a, b⟩, of one vector or of many."""
    aa, bb, ab = np.asarray(products, np.float64)
    total = each[0].weight + each[1].weight
    t = 0.5 if abs(total) < _NO_WEIGHT else each[1].weight / total
    lengths = np.maximum(np.sqrt(aa), _LEAST_NORM) * np.maximum(np.sqrt(bb), _LEAST_NORM)
    with np.errstate(invalid="ignore"):  # task vectors beyond fp32: what is written is checked
        cosine = np.clip(ab / lengths, -1.0, 1.0)
    straight = 1 - cosine * cosine < _STRAIGHT
    angle = np.arccos(np.where(straight, 0.0, cosine))
    return np.stack([np.where(straight, u, np.sin(u * angle) / np.sin(angle)) for u in (1 - t, t)])


def _matrices(block: Block[Each, Shared]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Cut a block where a matrix ends: its place in the stack, and the rows of a and b."""
    size = max(math.prod(block.target.matrix or block.target.shape), 1)
    a, b = vectors(block)
    start, stop = block.start, block.start + a.numel()
    for place in range(start // size, max(stop - 1, start) // size + 1):
        run = slice(max(place * size - start, 0), min((place + 1) * size, stop) - start)
        shape = (-1, max(block.target.columns, 1))
        yield place, a[run].reshape(shape), b[run].reshape(shape)


def _products(a: Tensor, b: Tensor, axis: int) -> Numbers:
    pairs = ((a, a), (b, b), (a, b))
    return np.stack([(x.double() * y.double()).sum(axis).cpu().numpy() for x, y in pairs])


def _columns(block: Block[Each, Shared]) -> Statistics:
    return {place: _products(a, b, 0) for place, a, b in _matrices(block)}


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the coefficients of the whole tensor, or of each matrix's columns."""
    each = tuple(scope.each.values())
    if scope.shared.flatten:
        gram = yield from survey_gram(2)
        return tuple(map(float, _coefficients([gram[0][0], gram[1][1], gram[0][1]], each)))
    if not scope.shared.row_wise:
        return None
    columns: Mapping[Any, Numbers] = yield _columns
    return {place: _coefficients(products, each) for place, products in columns.items()}


def merge(block: Block[Each, Shared], found: Any) -> Tensor:
    """Add a and b up by the coefficients of the tensor, of each column, or of each row."""
    import torch

    if block.shared.flatten:
        return add_weighted(block, found)
    parts = []
    for place, a, b in _matrices(block):
        if block.shared.row_wise and block.target.matrix is not None:
            first, second = found[place]
        else:
            first, second = _coefficients(_products(a, b, 1), block.each)[:, :, None]
        parts.append((a * a.new_tensor(first) + b * b.new_tensor(second)).flatten())
    update = torch.cat(parts)
    return update if block.base is None else add_update(block.base, update, 1.0)


def kernel(block: Block[Each, Shared], found: tuple[float, float], out: Out) -> None:
    """Do the same with a packed block of tensors that are one vector each."""
    add_weighted_packed(block, found, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=False,
    optional_base=True,
    models=(2, 2),
    survey=survey,
    sweeps=lambda shared: int(shared.flatten or shared.row_wise),
    cut=cut,
    kernel=kernel,
    has_kernel=lambda shared: shared.flatten,
    against="mergekit 0.1.5",
)
