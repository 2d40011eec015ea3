"""Matrices of low rank as factors, in fp64: of a matrix, or of a sum of products.

A matrix M [out, in] is U diag(s) Vh; the factors of a LoRA update are B [out, r] and A [r, in].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Spectrum", "decompose", "decompose_sum", "least_rank"]


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A singular value decomposition, up to the numerical rank: U [out, k], s [k], Vh [k, in]."""

    u: Tensor
    s: Tensor
    vh: Tensor

    @property
    def rank(self) -> int:
        """The numerical rank: how many singular values are above rounding."""
        return len(self.s)

    def factors(self, rank: int, scale: float, *, distribute: bool = True) -> tuple[Tensor, Tensor]:
        """B and A with `scale` * B @ A the nearest matrix of that rank (Eckart and Young, 1936).

        `distribute` gives √s to both; otherwise A has all of s, and B's columns are orthonormal.
        """
        s = self.s[:rank] / scale
        left = s.sqrt() if distribute else torch.ones_like(s)
        return self.u[:, :rank] * left, (s / left)[:, None] * self.vh[:rank]


def decompose(matrix: Tensor, largest: Tensor | None = None) -> Spectrum:
    """Give the decomposition of a matrix, computed in fp64 where the matrix is.

    Singular values that may be rounding alone, beside the matrix's largest one or beside `largest`
    (of what it was computed from), do not count.
    """
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    # The threshold of numpy's matrix_rank, and MATLAB's.
    least = (
        max(matrix.shape) * torch.finfo(torch.float64).eps * (s[:1] if largest is None else largest)
    )
    rank = int((s > least).sum())
    return Spectrum(u[:, :rank], s[:rank], vh[:rank])


def decompose_sum(bs: Sequence[Tensor], a_s: Sequence[Tensor]) -> Spectrum:
    """Give the decomposition of Σ B_i @ A_i, without ever forming that matrix.

    The stacked factors [B_1 B_2 …] = Q_b R_b and [A_1; A_2; …]ᵀ = Q_a R_a leave a small matrix:

        Σ B_i A_i = Q_b (R_b R_aᵀ) Q_aᵀ
    """
    q_b, r_b = torch.linalg.qr(torch.cat([b.double() for b in bs], dim=1))
    q_a, r_a = torch.linalg.qr(torch.cat([a.double() for a in a_s]).T)
    # Where terms cancel, rounding is as large as they were.
    largest = torch.linalg.matrix_norm(r_b) * torch.linalg.matrix_norm(r_a)
    core = decompose(r_b @ r_a.T, largest)
    return Spectrum(q_b @ core.u, core.s, core.vh @ q_a.T)


def least_rank(s: Tensor, energy: float) -> int:
    """Give the least rank that keeps this share of Σ s²."""
    kept = s.square().cumsum(0)
    return int((kept < energy * kept[-1]).sum()) + 1 if len(s) else 0
