"""Give what was trimmed its old size back: mergekit's `rescale: true`.

    factor_i = Σ|τ_i| / Σ|τ̂_i|

over the scope, τ̂_i being what stays of τ_i. A model that keeps everything, or whose norm is below
10⁻⁷, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from mergepipe.dropout import ratio
from mergepipe.method import Block, Scope, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Restore", "rescaled", "survey_factors"]

Restore: TypeAlias = Literal["none", "l1"]
Kept: TypeAlias = Callable[[Block[Any, Any]], Sequence["Tensor"]]


def _norms(kept: Kept, block: Block[Any, Any]) -> Statistics:
    pairs = zip(block.labels, block.deltas, kept(block), strict=True)
    return {
        label: np.array([float(x.abs().double().sum()) for x in (delta, stays)])
        for label, delta, stays in pairs
    }


def survey_factors(scope: Scope[Any, Any], kept: Kept) -> Survey:
    """Find each model's factor: {label: factor}, 1 where nothing is restored."""
    if scope.shared.rescale == "none":
        return dict.fromkeys(scope.each, 1.0)
    norms = yield partial(_norms, kept)
    return {
        label: ratio(*norms[label]) if one.density < 1 else 1.0 for label, one in scope.each.items()
    }


def rescaled(
    vectors: Sequence[Tensor], block: Block[Any, Any], factors: Mapping[str, float]
) -> list[Tensor]:
    """Multiply each model's task vector by its factor."""
    return [
        vector if factors[label] == 1 else vector * factors[label]
        for vector, label in zip(vectors, block.labels, strict=True)
    ]
