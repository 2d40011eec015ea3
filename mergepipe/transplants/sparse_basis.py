"""Give each row by coordinates along axes that are sparse combinations of shared tokens.

The idea is mergekit-tokensurgeon's `sparse_token_basis`, which its version 0.1.5 cannot run.

    v_1 … v_q: principal axes of shared tokens on the side with fewer columns (q of them)
    I_j, c_j = orthogonal matching pursuit of v_j, k atoms, in those tokens' centred rows
    b_j = Σ c_ji a_i in the donor, b'_j = Σ c_ji p_i in the base (rows as they are)
    y_t = Σ_j z_j b'_j + mean of the base, z = least squares of x_t - mean of the donor in b

Directions that matter are told by the same tokens in both spaces.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mergepipe.transplant import Fitted, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.landmarks import Landmarks, landmarks, linear
from mergepipe.transplant.pursuit import Dictionary
from mergepipe.transplant.task import Task


class Parameters(Base):
    """How many tokens an axis is made of."""

    k: PositiveInt = Field(8, description="shared tokens that each axis is made of, at most")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Make both bases, and with them one linear map, in fp64."""
    marks = landmarks(task, center=True)
    rows = task.base[marks.pairs[:, 1]].cpu()
    centred = (rows.double() - marks.base_center.double()).float()
    smaller = marks.atoms if marks.atoms.shape[1] <= rows.shape[1] else centred
    basis, base_basis = _bases(marks, smaller, rows, parameters.k)
    # x B⁺ B': the coordinates of least squares, then the same along the base's axes.
    weights = torch.linalg.pinv(basis) @ base_basis
    return linear(replace(marks, base_center=marks.base_mean), weights)


def _bases(marks: Landmarks, smaller: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    wide = smaller.double()
    axes = torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(1).T
    found = Dictionary(smaller, threads=marks.task.threads).pursue(axes.float().contiguous(), k)
    ids = torch.from_numpy(found.ids).clamp(min=0)
    weights = torch.from_numpy(found.coefficients)  # 0 where there is no atom
    whole = marks.atoms.double() + marks.center.double()
    basis = torch.einsum("qk,qkd->qd", weights, whole[ids])
    return basis, torch.einsum("qk,qkd->qd", weights, rows.double()[ids])


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"donor table"}))
