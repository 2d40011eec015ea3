"""DELLA's half of `della` and `della_linear`: drop at random, small elements more often.

Deep, Bhardwaj and Poria, "DELLA-Merging: Reducing Interference in Model Merging through
Magnitude-Based Sampling", 2024. https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergepipe.dropout import Rescale, rescale_sweeps
from mergepipe.kernels.random import random_words, random_words_torch, stream_key
from mergepipe.method import Block, Scope, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Rescale",
    "check_probabilities",
    "keep_probabilities",
    "prune",
    "rescale_sweeps",
    "survey_rescale",
    "whole_rows",
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


def whole_rows(_shared: Any) -> bool:
    """Ask for blocks of whole rows: ranks are those within a row."""
    return True


def keep_probabilities(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """Give the probability q that each element stays, from its rank in its row: fp64.

    q = (d − ε) + 2ε(r − 1)/(c − 1) along the last dimension, of length c; r is 1 for the smallest
    magnitude, and of equal ones for the first. A row of one element has q = d.
    """
    columns = rows.shape[-1]
    if density in (0, 1):
        return rows.double().new_full(rows.shape, density)
    order = rows.abs().argsort(dim=-1, stable=True)
    rank = rows.new_ones(columns).double().cumsum(-1) - 1
    place = rank / (columns - 1) if columns > 1 else rank + 0.5
    q = ((density - epsilon) + 2 * epsilon * place).expand(order.shape)
    return q.new_empty(q.shape).scatter(-1, order, q)


def _words(key: int, start: int, like: Tensor) -> Tensor:
    if like.device.type != "cpu":
        return random_words_torch(key, start, like.numel(), like.device)
    # fp64 holds every 32-bit word exactly.
    return like.double().new_tensor(random_words(key, start, like.numel()).astype(np.float64))


def _drawn(block: Block[Any, Any]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each task vector, which of its elements stay, and with what probability they do."""
    for delta, label, each in zip(block.deltas, block.labels, block.each, strict=True):
        rows = delta.reshape(-1, max(block.columns, 1))
        q = keep_probabilities(rows, each.density, each.epsilon).flatten()
        words = _words(stream_key(block.seed, label, block.tensor), block.start, delta)
        yield delta, words < (q * 2**32).floor(), q


def _l1_norms(block: Block[Any, Any]) -> Statistics:
    norms = zip(block.labels, _drawn(block), strict=True)
    return {
        label: np.array([float(x.double().abs().sum()) for x in (delta, delta.where(keep, 0.0))])
        for label, (delta, keep, _) in norms
    }


def survey_rescale(scope: Scope[Any, Any]) -> Survey:
    """Find the factor on each model's survivors: {label: factor}.

    `l1` restores the tensor's L1 norm (mergekit's `rescale: true`); `none` is 1, and so is
    `inverse`, whose factor 1/q is each element's own.
    """
    if scope.shared.rescale != "l1":
        return dict.fromkeys(scope.each, 1.0)
    norms = yield _l1_norms
    return {
        label: norms[label][0] / norms[label][1] if min(norms[label]) >= _TINY else 1.0
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
