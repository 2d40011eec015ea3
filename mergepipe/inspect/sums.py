"""Sums over tensors that add up, and the numbers that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mergepipe.kernels.compare import Tally

__all__ = ["ModelNumbers", "PairNumbers", "Sums", "model_numbers", "pair_numbers", "sums_of"]


@dataclass(frozen=True, slots=True)
class Sums:
    """What models differ by, over one tensor or many; a model counts where it has the tensor.

    Vectors have an entry for each of the n models, matrices one for each pair; τ is a model's
    weights less the base's, θ_0.
    """

    tensors: int
    common: NDArray[np.int64]  # elements that both models have; on the diagonal, that one has
    base: NDArray[np.float64]  # ‖θ_0‖² over the tensors that the model has
    along: NDArray[np.float64]  # ⟨θ_0, τ_i⟩
    products: NDArray[np.float64]  # ⟨τ_i, τ_j⟩
    squares: NDArray[np.float64]  # ‖τ_i‖² over the tensors that j has too
    both: NDArray[np.int64]  # elements in which both differ from the base
    conflict: NDArray[np.int64]  # in which both do, in opposite directions
    unequal: NDArray[np.int64]  # in which the two models differ
    rounded: NDArray[np.int64]  # in which a model differs from the base as the coarser stores it

    def __add__(self, other: Self) -> Sums:
        return Sums(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


def sums_of(found: Tally, at: Sequence[int], count: int, elements: int) -> tuple[Sums, list[int]]:
    """Place a tensor's tally among `count` models, of which those `at` have it.

    Also gives the models in which a value is not finite; they are left out.
    """
    along, products = found.gram[0, 1:], found.gram[1:, 1:]
    finite = np.isfinite(along) & np.isfinite(np.diag(products))
    rows, places = np.flatnonzero(finite), np.array(at, np.int64)[finite]
    has = np.zeros(count, np.int64)
    has[places] = 1

    def vector(values: NDArray[Any]) -> NDArray[Any]:
        out = np.zeros(count, values.dtype)
        out[places] = values[rows]
        return out

    def matrix(values: NDArray[Any]) -> NDArray[Any]:
        out = np.zeros((count, count), values.dtype)
        out[np.ix_(places, places)] = values[np.ix_(rows, rows)]
        return out

    sums = Sums(
        tensors=1,
        common=np.outer(has, has) * elements,
        base=np.where(has, found.gram[0, 0], 0.0),
        along=vector(along),
        products=matrix(products),
        squares=np.diag(matrix(products))[:, None] * has.astype(np.float64),
        both=matrix(found.both),
        conflict=matrix(found.conflict),
        unequal=matrix(found.unequal),
        rounded=vector(found.rounded),
    )
    return sums, [one for one, is_finite in zip(at, finite, strict=True) if not is_finite]


@dataclass(frozen=True, slots=True)
class ModelNumbers:
    """How far a model is from the base; None where nothing can be divided by."""

    elements: int
    norm: float  # ‖τ‖
    relative_norm: float | None  # ‖τ‖ / ‖θ_0‖
    cosine_to_base: float | None  # between θ and θ_0
    changed: float | None  # share of elements that differ from the base
    changed_rounded: float | None  # that do when both are rounded to the coarser of their dtypes


@dataclass(frozen=True, slots=True)
class PairNumbers:
    """How two models' changes are to each other; None where nothing can be divided by."""

    cosine: float | None  # between τ_i and τ_j
    conflict: float | None  # of the elements that both changed, the share with opposite signs
    overlap: float | None  # share of elements that both changed
    identical: bool  # no element differs


def model_numbers(sums: Sums, i: int) -> ModelNumbers:
    """Give the numbers of a model."""
    square, base, along = float(sums.products[i, i]), float(sums.base[i]), float(sums.along[i])
    elements = int(sums.common[i, i])
    own = max(base + 2 * along + square, 0.0)  # ‖θ‖²
    return ModelNumbers(
        elements=elements,
        norm=math.sqrt(square),
        relative_norm=_ratio(math.sqrt(square), math.sqrt(base)),
        cosine_to_base=_cosine(base + along, base, own),
        changed=_ratio(int(sums.both[i, i]), elements),
        changed_rounded=_ratio(int(sums.rounded[i]), elements),
    )


def pair_numbers(sums: Sums, i: int, j: int) -> PairNumbers:
    """Give the numbers of a pair, over the tensors that both have."""
    both, common = int(sums.both[i, j]), int(sums.common[i, j])
    product, squares = float(sums.products[i, j]), sums.squares
    return PairNumbers(
        cosine=_cosine(product, float(squares[i, j]), float(squares[j, i])),
        conflict=_ratio(int(sums.conflict[i, j]), both),
        overlap=_ratio(both, common),
        identical=common > 0 and not sums.unequal[i, j],
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _cosine(product: float, square: float, other: float) -> float | None:
    found = _ratio(product, math.sqrt(square) * math.sqrt(other))
    return None if found is None else min(max(found, -1.0), 1.0)
