"""DARE's half of `dare_linear` and `dare_ties`: drop elements at random, rescale the rest.

Yu et al., "Language Models are Super Mario", ICML 2024. https://arxiv.org/abs/2311.03099
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from mergepipe.kernels.fused import Draw
from mergepipe.kernels.random import keep_limit, keep_mask, stream_key
from mergepipe.kernels.sums import absolute_sums
from mergepipe.method import Block, Scope, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Rescale", "draws", "drop", "ratio", "rescale_sweeps", "survey_rescale"]

Rescale: TypeAlias = Literal["inverse", "l1", "none"]
_TINY = 1e-7  # mergekit leaves a tensor alone whose L1 norm is below this


def _masked(block: Block[Any, Any]) -> tuple[Tensor, ...]:
    return tuple(
        delta.where(
            keep_mask(
                stream_key(block.seed, label, block.tensor),
                block.start,
                delta.numel(),
                each.density,
                delta.device,
            ),
            0.0,
        )
        for delta, label, each in zip(block.deltas, block.labels, block.each, strict=True)
    )


def draws(block: Block[Any, Any]) -> list[Draw]:
    """Give the masks of a packed block's models."""
    return [
        Draw(stream_key(block.seed, label, block.tensor), keep_limit(each.density))
        for label, each in zip(block.labels, block.each, strict=True)
    ]


def _l1_norms(block: Block[Any, Any]) -> Statistics:
    if block.packed is not None:
        return {
            label: absolute_sums(block.packed, block.row(label), draw, block.start)
            for label, draw in zip(block.labels, draws(block), strict=True)
        }
    norms = zip(block.labels, block.deltas, _masked(block), strict=True)
    return {
        label: np.array([float(x.abs().double().sum()) for x in (delta, kept)])
        for label, delta, kept in norms
    }


def survey_rescale(scope: Scope[Any, Any]) -> Survey:
    """Find the factor on each model's survivors: {label: factor}.

    `inverse` is 1/density (the paper's), `l1` restores the tensor's L1 norm (mergekit's
    `rescale: true`), `none` is 1.
    """
    each, rescale = scope.each, scope.shared.rescale
    if rescale == "l1":
        norms = yield _l1_norms
        return {label: ratio(*norms[label]) if each[label].density < 1 else 1.0 for label in each}
    if rescale == "none":
        return dict.fromkeys(each, 1.0)
    return {label: 1 / one.density if one.density > 0 else 1.0 for label, one in each.items()}


def rescale_sweeps(shared: Any) -> int:
    """One to measure L1 norms, where they are asked for."""
    return int(shared.rescale == "l1")


def ratio(dense: float, kept: float) -> float:
    """Give the factor that restores an L1 norm; 1 where there is next to nothing."""
    return float(dense) / float(kept) if min(dense, kept) >= _TINY else 1.0


def drop(block: Block[Any, Any], factors: Mapping[str, float]) -> tuple[Tensor, ...]:
    """Give the block's task vectors with elements dropped at random and survivors rescaled."""
    return tuple(
        kept * factors[label] for kept, label in zip(_masked(block), block.labels, strict=True)
    )
