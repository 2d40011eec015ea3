"""What methods share that merge task matrices by element in a basis common to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field

from mergepipe.delta import add_update, agreeing, combine
from mergepipe.method import Block, Cut, Parameters, Scope, Survey, Target
from mergepipe.spectral import RANK, all_finite, as_matrices, is_taken_apart
from mergepipe.trim import LARGEST_SWEEPS, Trim, keep_count, keep_largest, survey_largest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Each", "combined", "cut", "merge_aligned", "survey_others", "sweeps", "trimmed_matrix"]

AnyBlock: TypeAlias = Block[Any, Any]


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="factor on the model's task vector; also its vote")
    density: float = Field(1.0, ge=0, le=1, description="fraction of each matrix that `ties` keeps")


def _is_aligned(shared: Any, target: Target) -> bool:
    # A sum is the same in every basis.
    return shared.combine != "linear" and is_taken_apart(shared, target)


def cut(shared: Any, target: Target) -> Cut:
    """Ask for whole matrices of what is aligned."""
    return "matrices" if _is_aligned(shared, target) else "anywhere"


def survey_others(scope: Scope[Any, Any]) -> Survey:
    """Find which elements `ties` keeps of a tensor that is not aligned."""
    if scope.shared.combine != "ties" or _is_aligned(scope.shared, scope.targets[0]):
        return None
    counts = {k: keep_count(scope.each[k].density, size) for k, size in scope.sizes.items()}
    return (yield from survey_largest(scope.sizes, counts))


def sweeps(shared: Any) -> int:
    """Those of a trim."""
    return LARGEST_SWEEPS if shared.combine == "ties" else 0


def combined(block: AnyBlock, vectors: Sequence[Tensor], *, mean: bool = False) -> Tensor:
    """Σ_i w_i x_i; by `ties`, or where a `mean` is asked for, over the weights that count."""
    weights = [each.weight for each in block.each]
    weighted = [x * w for x, w in zip(vectors, weights, strict=True)]
    ties = block.shared.combine == "ties"
    masks = agreeing(weighted, "sum") if ties else None
    return combine(weighted, weights, masks, normalize=ties or mean)


def trimmed_matrix(matrix: Tensor, density: float) -> Tensor:
    """Keep the k largest elements, of equal ones the first, but none that is rounding: it votes."""
    if not matrix.numel():
        return matrix
    flat = matrix.flatten()
    flat = flat.where(flat.abs() > RANK * flat.abs().amax(), 0.0)
    kept = flat.abs().argsort(descending=True, stable=True)[: keep_count(density, len(flat))]
    out = flat * 0
    out[kept] = flat[kept]
    return out.reshape(matrix.shape)


def merge_aligned(
    block: AnyBlock,
    trims: Mapping[str, Trim] | None,
    merged: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    """θ_0 + λ·merged(Δ_1 … Δ_N); of what is not aligned, its elements combined as they are.

    Where a value is not finite, all of the matrix is NaN.
    """
    assert block.base is not None, "methods on task matrices need a base"
    shared = block.shared
    if not _is_aligned(shared, block.target):
        kept = block.deltas if trims is None else keep_largest(block, trims)
        update = combined(block, kept, mean=shared.combine == "tsv")
    elif all_finite(block.deltas):
        update = merged(as_matrices(block, block.deltas)).float().flatten()
    else:
        return block.base * float("nan")
    return add_update(block.base, update, shared.lambda_)
