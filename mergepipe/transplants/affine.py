"""Give each row as the affine image of its row in the donor, fitted to the shared tokens.

Ridge regression (Hoerl and Kennard 1970) from donor to base, as word vectors of two languages are
mapped: Mikolov, Le and Sutskever 2013, https://arxiv.org/abs/1309.4168

    C, P: donor's and base's rows of shared tokens, less their means; λ' = λ ‖C‖² / columns
    W = (CᵀC + λ' 1)⁻¹ CᵀP
    y_t = (x_t - mean of the donor) W + mean of the base

If the base's rows are an affine image of the donor's, λ = 0 gives it back exactly.
"""

from __future__ import annotations

import torch
from pydantic import Field

from mergepipe.transplant import Fitted, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.landmarks import landmarks, linear, moments
from mergepipe.transplant.task import Task


class Parameters(Base):
    """How strongly the map is held back."""

    ridge: float = Field(0.01, ge=0, description="λ, relative to the mean variance of a column")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Solve for the map in fp64."""
    marks = landmarks(task, center=True)
    own, across, _ = moments(marks)
    held = parameters.ridge * own.trace() / len(own)
    matrix = own + held * torch.eye(len(own), dtype=torch.float64)
    # The minimum-norm solution where columns depend on one another and nothing holds them.
    weights = torch.linalg.lstsq(matrix, across, driver="gelsd").solution
    return linear(marks, weights)


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"donor table"}))
