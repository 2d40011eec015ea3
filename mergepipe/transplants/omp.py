"""Give each row as the sparse combination of shared tokens that makes its row in the donor.

Goddard and Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching
Pursuit", 2025. https://arxiv.org/abs/2506.06607

    a_i, p_i: donor's and base's row of shared token i, less their means over shared tokens
    I, c = orthogonal matching pursuit of x_t in a, at most k atoms
    y_t = Σ_{i ∈ I} c_i p_i + mean of the base

The paper's program (mergekit-tokensurgeon) subtracts no means: `center: false`. With them, rows
of a donor whose geometry is another's blow up far less. Atoms are not normalised, so long rows
are favoured; `normalize_atoms` makes them compete by direction alone.

    x_t = 2 a_1 - a_7   →   y_t = 2 p_1 - p_7

k is at most the number of shared tokens and of the donor's columns; a token stops earlier once
its residual is 1e-6 of its norm, or no atom is independent of those taken. With `center`, the
weights need not sum to one: the rest falls on the mean row of the shared tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mergepipe.transplant import Approximation, Fitted, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.landmarks import Landmarks, fitted_in_blocks, landmarks, mix
from mergepipe.transplant.pursuit import Dictionary
from mergepipe.transplant.task import Task

_WILD = 50.0  # Σ |c| of a combination that cancels more than it adds
_LONG = 3.0  # times the 95th percentile of the base's norms


class Parameters(Base):
    """How many atoms, and how they compete."""

    k: PositiveInt = Field(64, description="shared tokens that each row is made of, at most")
    center: bool = Field(True, description="subtract the mean of the shared tokens on both sides")
    normalize_atoms: bool = Field(False, description="choose by direction, not by length")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Read the dictionary; targets are pursued as they are asked for."""
    marks = landmarks(task, center=parameters.center)
    return pursued(marks, dictionary(marks, parameters), parameters.k)


def dictionary(marks: Landmarks, parameters: Parameters) -> Dictionary:
    """Make the landmarks' donor rows atoms."""
    return Dictionary(
        marks.atoms.to(marks.task.device),
        normalize=parameters.normalize_atoms,
        threads=marks.task.threads,
    )


def pursued(marks: Landmarks, atoms: Dictionary, k: int) -> Fitted:
    """Make rows of at most `k` atoms."""
    k = min(k, *marks.atoms.shape)
    limit = _LONG * _long_norm(marks)

    def approximate(targets: Tensor) -> Approximation:
        found = atoms.pursue(targets.to(marks.task.device), k)
        rows = mix(marks, found.ids, found.coefficients)
        _warn(marks, found.coefficients, rows, limit)
        ids = np.where(found.ids >= 0, marks.pairs[found.ids, 1], -1)
        weights = torch.from_numpy(found.coefficients).float()
        return Approximation(
            rows, torch.from_numpy(found.residual).float(), torch.from_numpy(ids), weights
        )

    return fitted_in_blocks(marks, approximate, k)


def _long_norm(marks: Landmarks) -> float:
    some = marks.pairs[:: max(1, len(marks.pairs) // 4096), 1]
    norms: Tensor = marks.task.base[some].double().norm(dim=1)
    return float(norms.quantile(0.95))


def _warn(
    marks: Landmarks,
    coefficients: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    rows: Tensor,
    limit: float,
) -> None:
    wild = int((np.abs(coefficients).sum(axis=1) > _WILD).sum())
    long = int((rows.double().norm(dim=1) > limit).sum())
    if wild or long:
        marks.task.tell(
            f"omp: of {len(rows)} rows, {wild} are made of coefficients that sum to more than "
            f"{_WILD:g}, {long} are longer than {_LONG:g} times the base's long rows: "
            "a smaller k may serve better"
        )


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"donor table"}))
