"""Give each row by turning the donor's principal axes onto the base's.

Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 1966; the
idea is mergekit-tokensurgeon's `landmark_pca`, whose rotation is the transpose of this one.

    C V_a, P V_b: coordinates of shared tokens along the q = min(columns) first principal axes
    U S Zᵀ = svd((C V_a)ᵀ (P V_b)),   R = U Zᵀ
    y_t = (x_t - mean of the donor) V_a R V_bᵀ + mean of the base

R is the rotation that brings the one's coordinates nearest to the other's. If the base's rows are
the donor's turned and shifted, the result is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergepipe.transplant import Fitted, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.landmarks import landmarks, linear, moments
from mergepipe.transplant.task import Task


class Parameters(Base):
    """It has none."""


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Solve for both bases and the rotation between them in fp64."""
    del parameters
    marks = landmarks(task, center=True)
    own, across, base = moments(marks)
    kept = min(len(own), len(base))
    axes, base_axes = _axes(own, kept), _axes(base, kept)
    left, _, right = torch.linalg.svd(axes.T @ across @ base_axes)
    return linear(marks, axes @ left @ right @ base_axes.T)


def _axes(covariance: Tensor, count: int) -> Tensor:
    """Give the eigenvectors of the largest eigenvalues: [columns, count]."""
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors.flip(1)[:, :count]


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"donor table"}))
