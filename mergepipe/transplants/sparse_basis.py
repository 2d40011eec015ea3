"""Give each row by coordinates along axes that are sparse combinations of shared tokens.

The idea is mergekit-tokensurgeon's `sparse_token_basis`, which its version 0.1.5 cannot run.

    a_i, p_i: donor's and base's rows of shared token i, less their means over shared tokens
    v_1 … v_q: principal axes of shared tokens on the side with fewer columns (q of them)
    I_j, c_j = orthogonal matching pursuit of v_j, k atoms, in that side's rows
    b_j = Σ c_ji a_i in the donor, b'_j = Σ c_ji p_i in the base
    y_t = Σ_j z_j b'_j + mean of the base, z = least squares of x_t - mean of the donor in b

Directions that matter are told by the same tokens in both spaces. With few atoms the axes come out
nearly dependent, and least squares makes rows of many times the length. (mergekit combines rows
from which no mean is subtracted, which puts a share of the mean into every axis.)
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mergepipe.transplant import Fitted, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.landmarks import Landmarks, landmarks, linear
from mergepipe.transplant.pursuit import Dictionary
from mergepipe.transplant.task import Task

_DEPENDENT = 100.0  # the longest of the axes' singular values over the shortest
_AXES = 64  # that are made at once


class Parameters(Base):
    """How many tokens an axis is made of."""

    k: PositiveInt = Field(64, description="shared tokens that each axis is made of, at most")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Make both bases, and with them one linear map, in fp64."""
    marks = landmarks(task, center=True)
    rows = task.base[marks.pairs[:, 1]].cpu() - marks.base_center
    fewer = marks.atoms if marks.atoms.shape[1] <= rows.shape[1] else rows
    basis, base_basis = _bases(marks, fewer, rows, parameters.k)
    lengths = torch.linalg.svdvals(basis)
    condition = float(lengths[0] / lengths[-1])
    if not condition < _DEPENDENT:
        task.tell(f"sparse_basis: axes nearly depend on one another ({condition:.2g}): raise k")
    # x B⁺ B': the coordinates of least squares, then the same along the base's axes.
    return linear(marks, torch.linalg.pinv(basis) @ base_basis)


def _bases(marks: Landmarks, fewer: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    wide = fewer.double()
    axes = torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(1).T
    found = Dictionary(fewer, threads=marks.task.threads).pursue(axes.float().contiguous(), k)
    ids = torch.from_numpy(found.ids).clamp(min=0)
    weights = torch.from_numpy(found.coefficients)  # 0 where there is no atom
    return _combined(weights, marks.atoms, ids), _combined(weights, rows, ids)


def _combined(weights: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    parts = zip(torch.split(weights, _AXES), torch.split(ids, _AXES), strict=True)
    return torch.cat([torch.einsum("qk,qkd->qd", c, rows[i].double()) for c, i in parts])


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"donor table"}))
