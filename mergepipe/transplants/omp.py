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

With more atoms ever more of x_t is explained, but from some number on the base's row is further
away: `k: auto` withholds shared tokens, makes them of the others by 4, 8, 16, 32 and 64 atoms, and
takes the number of the largest median cosine to the rows that the base has, both less the mean. A
model and its fine-tune get the same combinations only by the same k: give one then.

k is at most the number of shared tokens and of the donor's columns; a token stops earlier once
its residual is 1e-6 of its norm, or no atom is independent of those taken. With `center`, the
weights need not sum to one: the rest falls on the mean row of the shared tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mergepipe.transplant import Approximation, Fitted, Ids, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.landmarks import Landmarks, fitted_in_blocks, landmarks, mix
from mergepipe.transplant.pursuit import Dictionary, default_gram_bytes
from mergepipe.transplant.task import Task
from mergepipe.transplant.withheld import FEWEST, median_cosine, withheld

_SIZES = (4, 8, 16, 32, 64)  # of combinations, to choose from
_TARGETS = 128  # rows that are made in all sizes at once
_WILD = 50.0  # Σ |c| of a combination that cancels more than it adds
_LONG = 3.0  # times the 95th percentile of the base's norms


class Parameters(Base):
    """How many atoms, and how they compete."""

    k: PositiveInt | Literal["auto"] = Field(
        "auto", description="shared tokens that each row is made of, at most"
    )
    withheld: PositiveInt = Field(400, description="shared tokens by which `k: auto` chooses")
    center: bool = Field(True, description="subtract the mean of the shared tokens on both sides")
    normalize_atoms: bool = Field(False, description="choose by direction, not by length")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Read the dictionary, choose k; targets are pursued as they are asked for."""
    marks = landmarks(task, center=parameters.center)
    atoms = dictionary(marks, parameters)
    if parameters.k != "auto":
        return pursued(marks, atoms, parameters.k)
    held = withheld(len(marks.pairs), parameters.withheld, task.seed)
    found = ranked(marks, atoms, held)
    k = max(found, key=lambda one: found[one])
    shown = ", ".join(f"{one}: {cosine:.3f}" for one, cosine in found.items())
    task.tell(f"omp: k = {k}, by median cosines on {len(held)} withheld tokens: {shown}")
    return pursued(marks, atoms, k)


def dictionary(marks: Landmarks, parameters: Parameters) -> Dictionary:
    """Make the landmarks' donor rows atoms."""
    return Dictionary(
        marks.atoms.to(marks.task.device),
        normalize=parameters.normalize_atoms,
        threads=marks.task.threads,
    )


def sizes(marks: Landmarks) -> tuple[int, ...]:
    """Give the numbers of atoms to choose from: no more than there are, nor than dimensions."""
    return tuple(dict.fromkeys(min(k, *marks.atoms.shape) for k in _SIZES))


def ranked(marks: Landmarks, atoms: Dictionary, held: Ids) -> dict[int, float]:
    """Give each number of atoms its median cosine on landmarks made of those not `held`."""
    choices = sizes(marks)
    if len(marks.pairs) < FEWEST:
        return {choices[0]: 0.0}
    parts = [
        _of_sizes(marks, atoms, marks.atoms[torch.from_numpy(some)], choices, held)
        for some in _parts(held)
    ]
    true = marks.task.base[marks.pairs[held, 1]]
    return {
        k: median_cosine(torch.cat([made[k] for made in parts]), true, marks.base_mean)
        for k in choices
    }


def in_sizes(task: Task, parameters: Parameters, positions: Ids) -> dict[int, Tensor]:
    """Make the rows of some missing tokens by each number of atoms."""
    marks = landmarks(task, center=parameters.center)
    atoms, choices = dictionary(marks, parameters), sizes(marks)
    found = {k: marks.base_mean.repeat(len(positions), 1) for k in choices}
    for at in range(0, len(positions), _TARGETS):
        targets, useful = marks.targets(positions[at : at + _TARGETS])
        if useful.size:
            for k, rows in _of_sizes(marks, atoms, targets[useful], choices).items():
                found[k][torch.from_numpy(useful + at)] = rows
    return found


def _parts(ids: Ids) -> Iterator[Ids]:
    for first in range(0, len(ids), _TARGETS):
        yield ids[first : first + _TARGETS]


def _of_sizes(
    marks: Landmarks,
    atoms: Dictionary,
    targets: Tensor,
    choices: tuple[int, ...],
    without: Ids | None = None,
) -> dict[int, Tensor]:
    """Make rows of each number of atoms in one pursuit: its first k atoms are those of k."""
    targets = targets.to(marks.task.device)
    longest = atoms.pursue(targets, max(choices), without)
    found = {k: atoms.shortened(targets, longest, k) for k in choices}
    return {k: mix(marks, one.ids, one.coefficients) for k, one in found.items()}


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


METHOD = TransplantMethod(
    Parameters,
    fit,
    needs=frozenset({"donor table"}),
    scratch=lambda shared, _: (default_gram_bytes(shared), False),
)
