"""Inner products of models, and sums of models by coefficients that are found from those.

Norms and angles between the models' vectors x_i are all in their Gram matrix G_ij = ⟨x_i, x_j⟩,
which is small and adds up over blocks. A formula whose result lies in the span of the x_i needs
one sweep for G; all else is arithmetic on coefficients. Where a block has a base, x_i is the task
vector τ_i = θ_i − θ_0, and the sum is added to the base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mergepipe.delta import add_packed, add_update
from mergepipe.kernels.fused import Combine, weighted_sum
from mergepipe.kernels.sums import inner_products
from mergepipe.method import Block, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

__all__ = [
    "Gram",
    "add_weighted",
    "add_weighted_packed",
    "norm_of_sum",
    "norms",
    "survey_gram",
    "vectors",
]

AnyBlock: TypeAlias = Block[Any, Any]
Gram: TypeAlias = list[list[float]]


def vectors(block: AnyBlock) -> tuple[Tensor, ...]:
    """What is combined: task vectors where there is a base, else the models themselves."""
    return block.models if block.base is None else block.deltas


def _products(block: AnyBlock, *, ignore_base: bool) -> Statistics:
    if block.packed is not None:
        return {"products": inner_products(block.packed)}
    wide = [x.double() for x in (block.models if ignore_base else vectors(block))]
    # Not torch.dot: BLAS may use threads of its own, and then their number changes the sum.
    pairs = ((x, y) for i, x in enumerate(wide) for y in wide[i:])
    return {"products": np.array([float((x * y).sum()) for x, y in pairs])}


def survey_gram(models: int, *, ignore_base: bool = False) -> Survey:
    """Find the Gram matrix of so many models, in one sweep."""
    products = iter((yield partial(_products, ignore_base=ignore_base))["products"])
    gram = [[0.0] * models for _ in range(models)]
    for i in range(models):
        for j in range(i, models):
            gram[i][j] = gram[j][i] = float(next(products))
    return gram


def norms(gram: Gram) -> list[float]:
    """‖x_i‖ of each."""
    return [math.sqrt(row[i]) for i, row in enumerate(gram)]


def norm_of_sum(gram: Gram, coefficients: Sequence[float]) -> float:
    """‖Σ_i c_i x_i‖ = √(Σ_ij c_i c_j G_ij)."""
    terms = (
        c * sum(d * g for d, g in zip(coefficients, row, strict=True))
        for c, row in zip(coefficients, gram, strict=True)
    )
    return math.sqrt(max(sum(terms), 0.0))


def add_weighted(block: AnyBlock, coefficients: Sequence[float]) -> Tensor:
    """Σ_i c_i θ_i; with a base θ_0 + Σ_i c_i τ_i, and exactly θ_0 where that sum is 0."""
    weighted = [x * c for x, c in zip(vectors(block), coefficients, strict=True)]
    total = sum(weighted[1:], weighted[0])
    return total if block.base is None else add_update(block.base, total, 1.0)


def add_weighted_packed(block: AnyBlock, coefficients: Sequence[float], out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    if block.packed.based:
        add_packed(block, Combine(coefficients), out)
    else:
        weighted_sum(block.packed, coefficients, None, out)
