"""WIDEN's scores: how much of each model's task vector a column, a row or an element takes.

Yu et al., "Extend Model Merging from Fine-Tuned to Pre-Trained Large Language Models via Weight
Disentanglement", 2024. https://arxiv.org/abs/2408.03092
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.columns import GROUP, column_sums, row_sums
from mergepipe.kernels.packed import unpacked
from mergepipe.method import Block, Statistics, Survey, Target

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["by_row", "score_tensors", "survey_scores", "vector_parts"]

AnyBlock: TypeAlias = Block[Any, Any]
Doubles: TypeAlias = NDArray[np.float64]
Scores: TypeAlias = NDArray[np.float32]

# What was measured: a vector, or rows (arrays in a list); of matrices, each has its number.
_VECTOR, _ROWS = "vector", "rows"


def by_row(target: Target) -> bool:
    """Whether rows are scored, one token each, not columns."""
    return target.role == "embedding" and target.shape == target.matrix


def survey_scores(size: int, shared: Any) -> Survey:
    """Give what `score_tensors` or `vector_parts` needs.

    Of matrices the scores, [matrices, models, columns]; of an embedding [1, models, rows]; of a
    vector of `size` elements each model's mean |τ_i|.
    """
    sums = yield partial(_measure, shared.drop_unchanged)
    if _VECTOR in sums:
        return sums[_VECTOR] / max(size, 1)
    if _ROWS in sums:
        return _scores(np.concatenate(sums[_ROWS], axis=-1)[None], shared)
    return _scores(np.stack(list(sums.values())), shared)


# What is measured.


def _measure(changes: bool, block: AnyBlock) -> Statistics:
    matrix = block.target.matrix
    if matrix is None:
        _, deltas = _vectors(block)
        return {_VECTOR: np.abs(deltas).sum(axis=1, dtype=np.float64)}
    first = block.start // max(matrix[1], 1)
    if by_row(block.target):
        if block.packed is not None:
            return {_ROWS: [row_sums(block.packed, matrix[1], changes=changes)]}
        return {_ROWS: [_stacked([_folded(x) for x in _products(block, changes=changes)])]}
    if block.packed is not None:
        parts = column_sums(block.packed, first, matrix, changes=changes)
        return dict(enumerate(parts, first // max(matrix[0], 1)))
    products = list(_products(block, changes=changes))
    return {
        number: _stacked([_grouped(x[top:bottom]) for x in products])
        for number, top, bottom in _matrices(first, len(products[0]), max(matrix[0], 1))
    }


def _matrices(first: int, rows: int, height: int) -> Iterator[tuple[int, int, int]]:
    """Give the matrices that a block has rows of: which one, from and up to which of its rows."""
    start = first // height
    for number in range(start, max(-(-(first + rows) // height), start + 1)):
        yield number, max(number * height - first, 0), min((number + 1) * height - first, rows)


def _products(block: AnyBlock, *, changes: bool) -> Iterator[Tensor]:
    """θ_0², each θ_i², each θ_i θ_0, and where each is not the base: [rows, columns] in fp64."""
    assert block.base is not None, "scores need a base"
    columns = block.target.columns
    shape = (block.base.numel() // max(columns, 1), columns)
    base, *models = (x.double().reshape(shape) for x in (block.base, *block.models))
    yield base * base
    yield from (model * model for model in models)
    yield from (model * base for model in models)
    if changes:
        yield from ((model != base).double() for model in models)


def _grouped(x: Tensor) -> Tensor:
    """Add rows up, in the order of `column_sums`."""
    while len(x) > 1:
        total = x[::GROUP].clone()
        for first in range(1, min(GROUP, len(x))):
            part = x[first::GROUP]
            total[: len(part)] += part
        x = total
    return x.sum(0)


def _folded(x: Tensor) -> Tensor:
    """Add columns up, in the order of `row_sums`."""
    while x.shape[1] > 1:
        half = (x.shape[1] + 1) // 2
        total = x[:, :half].clone()
        total[:, : x.shape[1] - half] += x[:, half:]
        x = total
    return x.sum(1)


def _stacked(sums: Sequence[Tensor]) -> Doubles:
    return np.stack([one.cpu().numpy() for one in sums])


def _vectors(block: AnyBlock) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the base and all τ_i, in numpy."""
    if block.packed is not None:
        base, *models = (unpacked(block.packed, row) for row in range(len(block.labels) + 1))
    else:
        assert block.base is not None, "scores need a base"
        base, *models = (x.cpu().numpy() for x in (block.base, *block.models))
    with np.errstate(over="ignore"):
        return base, np.stack([model - base for model in models])


# What follows from it.


def _scores(sums: Doubles, shared: Any) -> Scores:
    """Give a score to each of the vectors whose sums are given: [..., models, vectors]."""
    models, size = (sums.shape[1] - 1) // (3 if shared.drop_unchanged else 2), sums.shape[-1]
    base, squares, products = (
        sums[:, :1],
        sums[:, 1 : models + 1],
        sums[:, models + 1 :][:, :models],
    )
    changed = sums[:, 2 * models + 1 :].any(-1, keepdims=True)
    stays = changed if shared.drop_unchanged else np.True_
    # 2p > t(C − 1) in whole numbers: p is above the floor of t(C − 1) / 2.
    limit = min(max(Fraction(repr(shared.t)) * (size - 1) // 2, -1), size)
    total = np.zeros(squares.shape)
    for difference in _differences(base, squares, products, reference=shared.compat != "none"):
        order = difference.argsort(axis=-1, kind="stable")
        ranks = np.empty(order.shape, np.int64)
        np.put_along_axis(ranks, order, np.broadcast_to(np.arange(size), order.shape), axis=-1)
        shares = _softmax(ranks / max(size, 1), stays)
        total += np.where(ranks > limit, shared.s, shares)
    return (total / 2).astype(np.float32)


def _differences(
    base: Doubles, squares: Doubles, products: Doubles, *, reference: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """How far each vector is from the base's, in magnitude and in direction."""
    dtype = np.float32 if reference else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        magnitudes = np.abs(np.sqrt(squares).astype(dtype) - np.sqrt(base).astype(dtype))
        # √(x·x) is x, so that equal vectors have a cosine of exactly 1.
        cosines = products / np.sqrt(squares * base)
    directions = 1 - cosines.astype(dtype)
    if not reference:
        directions = np.where((squares == 0) | (base == 0), 1.0, directions)
        directions = np.where((squares == 0) & (base == 0), 0.0, directions)
    return magnitudes, directions


def _softmax(values: Doubles, stays: Any) -> Doubles:
    """Share 1 out among the models that stay: [..., models, vectors]."""
    shares = np.exp(values - values.max(axis=-2, keepdims=True)) * stays
    total = shares.sum(axis=-2, keepdims=True)
    return np.asarray(shares / np.where(total == 0, 1.0, total))


def score_tensors(block: AnyBlock, scores: Scores) -> list[Tensor]:
    """Give each model's scores, to be multiplied with its [rows, columns] of the block."""
    import torch

    assert block.base is not None, "scores need a base"
    (height, width), device = block.target.matrix or (1, 1), block.base.device
    first = block.start // max(width, 1)
    rows = block.base.numel() // max(width, 1)
    if by_row(block.target):
        part = torch.from_numpy(scores[0, :, first : first + rows]).to(device)
        return [one[:, None] for one in part]
    numbers = torch.arange(first, first + rows, device=device) // max(height, 1)
    start = first // max(height, 1)
    held = torch.from_numpy(scores[start : (first + rows) // max(height, 1) + 1]).to(device)
    return [held[numbers - start, model] for model in range(held.shape[1])]


def vector_parts(
    block: AnyBlock, means: Doubles
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the base and each s_i τ_i of a vector, [models, elements]."""
    shared = block.shared
    base, deltas = _vectors(block)
    sizes = np.abs(deltas).astype(np.float64)
    stays = means[:, None] > 0 if shared.drop_unchanged else np.True_
    with np.errstate(all="ignore"):
        above = sizes > shared.t * means[:, None]
        scores = np.where(above, shared.s, _softmax(sizes, stays))
        return base, deltas * scores.astype(np.float32)
