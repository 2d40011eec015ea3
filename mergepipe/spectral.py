"""What methods on matrices share: which tensors they take apart, numerical rank, polar factors.

Δ_i is the task vector of one whole matrix, in fp64. What is not taken apart (vectors, and unless
asked for embeddings and the output head, whose decomposition takes hours) is merged by element.
Singular values below 1e-6 of the largest are rounding of fp32 task vectors, and count as 0: their
singular vectors are whatever the solver leaves there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field

from mergepipe.delta import add_update, combine
from mergepipe.method import Block, Cut, Target

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "RANK",
    "Embeddings",
    "all_finite",
    "as_matrices",
    "cut",
    "decompose",
    "is_taken_apart",
    "mean",
    "merge_matrices",
    "orthogonalised",
    "polar",
    "top_count",
]

AnyBlock: TypeAlias = Block[Any, Any]
Triplets: TypeAlias = "tuple[Tensor, Tensor, Tensor]"  # U [rows, r], σ [r], Vᵀ [r, columns]
RANK = 1e-6  # of the largest singular value; those below count as 0

Embeddings: TypeAlias = Annotated[
    bool, Field(description="take embeddings and the output head apart like other matrices")
]


def is_taken_apart(shared: Any, target: Target) -> bool:
    """Tell whether a tensor is merged as a matrix, or matrices."""
    if target.matrix is None or target.numel == 0:
        return False
    return bool(shared.embeddings) or target.role == "other"


def cut(shared: Any, target: Target) -> Cut:
    """Ask for whole matrices of what is taken apart."""
    return "matrices" if is_taken_apart(shared, target) else "anywhere"


def as_matrices(block: AnyBlock, runs: Sequence[Tensor]) -> list[Tensor]:
    """Give runs of a block that is one matrix as matrices in fp64."""
    assert block.target.matrix is not None, "only matrices are taken apart"
    return [run.double().reshape(block.target.matrix) for run in runs]


def all_finite(runs: Sequence[Tensor]) -> bool:
    """Tell whether the runs can be decomposed."""
    return all(bool(run.isfinite().all()) for run in runs)


def mean(runs: Sequence[Tensor]) -> Tensor:
    """Σ_i x_i / N, in fp32 where they are."""
    return combine(runs, [1.0] * len(runs), None, normalize=True)


def merge_matrices(
    block: AnyBlock, alpha: float, merged: Callable[[list[Tensor]], Tensor]
) -> Tensor:
    """θ_0 + α·merged(Δ_1 … Δ_N); of what is not taken apart θ_0 + α/N·Σ_i Δ_i.

    Where a value is not finite, all of the matrix is NaN.
    """
    assert block.base is not None, "methods on task matrices need a base"
    if not is_taken_apart(block.shared, block.target):
        return add_update(block.base, mean(block.deltas), alpha)
    if not all_finite(block.deltas):
        return block.base * float("nan")
    update = merged(as_matrices(block, block.deltas))
    return add_update(block.base, update.float().flatten(), alpha)


def decompose(matrix: Tensor, *, scale: float | None = None, full: bool = False) -> Triplets:
    """Give U, σ, Vᵀ up to the numerical rank, or all min(rows, columns) triplets if `full`.

    `scale` takes the place of the largest singular value, for what is left of a larger matrix.
    """
    import torch

    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    if full:
        return u, s, vh
    rank = int((s > RANK * (s[:1] if scale is None else scale)).sum())
    return u[:, :rank], s[:rank], vh[:rank]


def polar(matrix: Tensor, *, full: bool = False) -> tuple[Tensor, Tensor]:
    """P Qᵀ of M = P Σ Qᵀ, the orthogonal matrix nearest to M on its row and column space; and σ.

    Outside of those spaces it is not determined; `full` takes what the solver gives there.
    """
    import torch

    if full:
        u, s, vh = decompose(matrix, full=True)
        return u @ vh, s
    if matrix.shape[0] > matrix.shape[1]:
        factor, s = polar(matrix.mT)
        return factor.mT, s
    # M Mᵀ = P Σ² Pᵀ costs a third of the decomposition of M. Relative errors grow with 1/σ² to
    # 1e-4 in the very last direction that counts.
    squares, u = torch.linalg.eigh(matrix @ matrix.mT)
    kept = squares > RANK**2 * squares[-1:]
    u, s = u[:, kept], squares[kept].sqrt()
    return (u / s) @ (u.mT @ matrix), s


def orthogonalised(matrices: Sequence[Tensor], *, full: bool = False) -> Tensor:
    """Give the sum of each matrix's top triplets, a share each, singular vectors made orthogonal.

    Û⊥ diag(σ) V̂⊥ᵀ of TSV-Merge. `full` counts triplets beyond a matrix's numerical rank too.
    """
    import torch

    count = max(1, min(matrices[0].shape) // len(matrices))
    parts = [decompose(matrix, full=full) for matrix in matrices]
    left, _ = polar(torch.cat([u[:, :count] for u, _, _ in parts], dim=1), full=full)
    right, _ = polar(torch.cat([vh[:count] for _, _, vh in parts]), full=full)
    return left * torch.cat([s[:count] for _, s, _ in parts]) @ right


def top_count(share: float, of: int) -> int:
    """⌊share·of⌋, in decimal: 0.29 of 100 is 29, not 28."""
    return int(Decimal(repr(share)) * of)
