"""DELLA's half of `della` and `della_linear`: drop at random, small elements more often.

Deep, Bhardwaj and Poria, "DELLA-Merging: Reducing Interference in Model Merging through
Magnitude-Based Sampling", 2024. https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergepipe.dropout import Rescale, rescale_sweeps
from mergepipe.kernels.fused import Draw
from mergepipe.kernels.packed import Packed, pack, unpacked
from mergepipe.kernels.random import random_words, random_words_torch, stream_key
from mergepipe.kernels.ranks import prune_rows
from mergepipe.kernels.sums import absolute_sum, absolute_sums
from mergepipe.method import Block, Cut, Scope, Statistics, Survey, Target

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Rescale",
    "by_rows",
    "check_probabilities",
    "keep_probabilities",
    "prune",
    "pruned",
    "rescale_sweeps",
    "row_probabilities",
    "survey_rescale",
]

_TINY = 1e-7  # mergekit leaves a tensor alone whose L1 norm is below this


def check_probabilities(each: Sequence[Any], _shared: Any) -> None:
    """Refuse probabilities outside (0, 1); density 0 and 1 drop and keep everything."""
    for one in each:
        low, high = one.density - one.epsilon, one.density + one.epsilon
        if one.density not in (0, 1) and not (low > 0 and high < 1):
            raise ValueError(
                f"density {one.density:g} and epsilon {one.epsilon:g} give probabilities from "
                f"{low:g} to {high:g}; density - epsilon must be above 0 and density + epsilon "
                f"below 1, or density 0 or 1"
            )


def by_rows(_shared: Any, _target: Target) -> Cut:
    """Ask for blocks of whole rows: ranks are those within a row."""
    return "rows"


def row_probabilities(columns: int, density: float, epsilon: float) -> NDArray[np.float64]:
    """Give the probability q that an element stays, by its rank in a row, the smallest first.

    q = (d − ε) + 2ε(r − 1)/(c − 1), with r from 1 to c; a row of one element has q = d.
    """
    if density in (0, 1):
        return np.full(columns, float(density))
    place = np.arange(columns) / (columns - 1) if columns > 1 else np.array([0.5])
    q: NDArray[np.float64] = (density - epsilon) + 2 * epsilon * place
    return q


def keep_probabilities(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """Give each element's q, from its rank by magnitude along the last dimension: fp64.

    Of equal magnitudes the first has the lower rank.
    """
    order = rows.abs().argsort(dim=-1, stable=True)
    by_rank = rows.double().new_tensor(row_probabilities(rows.shape[-1], density, epsilon))
    q = by_rank.expand(order.shape)
    return q.new_empty(q.shape).scatter(-1, order, q)


def _words(key: int, start: int, like: Tensor) -> Tensor:
    if like.device.type != "cpu":
        return random_words_torch(key, start, like.numel(), like.device)
    # fp64 holds every 32-bit word exactly.
    return like.double().new_tensor(random_words(key, start, like.numel()).astype(np.float64))


def _drawn(block: Block[Any, Any]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each task vector, which of its elements stay, and with what probability they do."""
    for delta, label, each in zip(block.deltas, block.labels, block.each, strict=True):
        rows = delta.reshape(-1, max(block.target.columns, 1))
        q = keep_probabilities(rows, each.density, each.epsilon).flatten()
        words = _words(stream_key(block.seed, label, block.tensor), block.start, delta)
        yield delta, words < (q * 2**32).floor(), q


def _l1_norms(block: Block[Any, Any]) -> Statistics:
    if block.packed is not None:
        return {
            label: np.array(
                [
                    absolute_sums(block.packed, block.row(label), Draw(), block.start)[0],
                    absolute_sum(_pruned(block, label, 1.0)),
                ]
            )
            for label in block.labels
        }
    norms = zip(block.labels, _drawn(block), strict=True)
    return {
        label: np.array([float(x.double().abs().sum()) for x in (delta, delta.where(keep, 0.0))])
        for label, (delta, keep, _) in norms
    }


def _pruned(block: Block[Any, Any], label: str, factor: float | None) -> NDArray[np.float32]:
    """Give a model's task vector of a packed block, pruned; without a factor survivors over q."""
    assert block.packed is not None, "kernels take packed blocks"
    each = block.each[block.labels.index(label)]
    return prune_rows(
        block.packed,
        block.row(label),
        row_probabilities(max(block.target.columns, 1), each.density, each.epsilon),
        factor=factor,
        key=stream_key(block.seed, label, block.tensor),
        first=block.start,
    )


def pruned(block: Block[Any, Any], factors: Mapping[str, float]) -> Packed:
    """Give the base and the pruned task vectors of a packed block, fp32."""
    assert block.packed is not None, "kernels take packed blocks"
    inverse = block.shared.rescale == "inverse"
    vectors = [_pruned(block, x, None if inverse else factors[x]) for x in block.labels]
    return pack([unpacked(block.packed, 0), *vectors], based=True)


def survey_rescale(scope: Scope[Any, Any]) -> Survey:
    """Find the factor on each model's survivors: {label: factor}.

    `l1` restores the tensor's L1 norm (mergekit's `rescale: true`); `none` is 1, and so is
    `inverse`, whose factor 1/q is each element's own.
    """
    if scope.shared.rescale != "l1":
        return dict.fromkeys(scope.each, 1.0)
    norms = yield _l1_norms
    return {
        label: float(norms[label][0]) / float(norms[label][1])
        if min(norms[label]) >= _TINY
        else 1.0
        for label in scope.each
    }


def prune(block: Block[Any, Any], factors: Mapping[str, float]) -> tuple[Tensor, ...]:
    """Give the block's task vectors with elements dropped at random and survivors rescaled."""
    inverse = block.shared.rescale == "inverse"
    drawn = zip(block.labels, _drawn(block), strict=True)
    return tuple(
        (delta / q.float() if inverse else delta * factors[label]).where(keep, 0.0)
        for label, (delta, keep, q) in drawn
    )
