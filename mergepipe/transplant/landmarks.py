"""The tokens that both vocabularies have, as landmarks in two spaces of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mergepipe.errors import InputError
from mergepipe.kernels import pursuit as kernels
from mergepipe.kernels.pursuit import Doubles, Ints
from mergepipe.transplant.task import Approximation, Fitted, Ids, Table, Task

__all__ = ["Landmarks", "fitted_in_blocks", "landmarks", "linear", "mix", "moments"]

_BLOCK = 4096  # rows of a table that are held in fp64 at once
_TARGETS = 512
_NOTHING = 1e-6  # rows shorter than this part of the median row hold nothing


@dataclass(frozen=True)
class Landmarks:
    """Anchors whose donor rows hold something: `pairs` [n, 2] of donor and base ids.

    `atoms` [n, columns of the donor] are the donor's rows less `center`; `base_center` is the
    same of the base's rows. Both centres are zeros where nothing is centred; `base_mean` never is.
    """

    task: Task
    pairs: Ids
    atoms: Tensor
    center: Tensor
    base_center: Tensor
    base_mean: Tensor
    least: float

    def targets(self, positions: Ids) -> tuple[Tensor, Ids]:
        """Give donor rows less the centre, and which positions have one that holds something."""
        assert self.task.donor is not None
        ids = self.task.missing[positions]
        has_row = ids < self.task.donor.rows
        rows = self.task.donor[np.where(has_row, ids, 0)].cpu().double()
        useful = np.flatnonzero(has_row & (rows.norm(dim=1).numpy() > self.least))
        return (rows - self.center.double()).float(), useful


def landmarks(task: Task, *, center: bool) -> Landmarks:
    """Read the anchors' donor rows, and the means of both sides.

    Raises
    ------
    InputError
        if there are none.

    """
    assert task.donor is not None
    atoms = task.donor[task.anchors[:, 0]].cpu()
    norms = np.sqrt(kernels.squares(atoms.contiguous().numpy()))
    least = _NOTHING * float(np.median(norms)) if norms.size else 0.0
    kept = norms > least
    if not kept.any():
        raise InputError(
            "the two vocabularies share no token whose row in the donor holds anything",
            "use a method that needs no shared tokens, such as 'subword'",
        )
    pairs = task.anchors[kept]
    atoms = atoms[torch.from_numpy(kept)]
    mean = torch.stack([part.sum(0) for part in _wide(atoms)]).sum(0) / len(atoms)
    base_sums = [rows.sum(0) for rows in _rows(task.base, pairs[:, 1])]
    base_mean = torch.stack(base_sums).sum(0) / len(pairs)
    shift, base_shift = (mean, base_mean) if center else (mean * 0, base_mean * 0)
    if center:
        # In place: the anchors of large vocabularies take gigabytes.
        for part in torch.split(atoms, _BLOCK):
            part.copy_(part.double() - shift)
    return Landmarks(
        task, pairs, atoms, shift.float(), base_shift.float(), base_mean.float(), least
    )


def _wide(rows: Tensor) -> Iterator[Tensor]:
    for part in torch.split(rows, _BLOCK):
        yield part.double()


def _rows(table: Table, ids: Ids) -> Iterator[Tensor]:
    for at in range(0, len(ids), _BLOCK):
        yield table[ids[at : at + _BLOCK]].cpu().double()


def mix(marks: Landmarks, ids: Ints, weights: Doubles) -> Tensor:
    """Give m + Σ_k w_k (p_k - m) of landmarks' base rows p in fp64: `ids` [n, k], -1 for none.

    m is the base's centre.
    """
    used, places = np.unique(ids, return_inverse=True)
    first = int(used.size > 0 and used[0] < 0)
    rows = marks.task.base[marks.pairs[used[first:], 1]].cpu().contiguous().numpy()
    center = marks.base_center.double().numpy()
    left = 1 - np.where(ids >= 0, weights, 0).sum(axis=1)
    out = (left[:, None] * center).astype(np.float64)
    kernels.combine(rows, places.reshape(ids.shape) - first, weights, out)
    return torch.from_numpy(out.astype(np.float32))


def fitted_in_blocks(
    marks: Landmarks, approximate: Callable[[Tensor], Approximation], width: int = 0
) -> Fitted:
    """Apply `approximate` to centred donor rows, a bounded number at once.

    Tokens whose donor row holds nothing get the base's mean row. `width`: landmarks each is made
    of, 0 where it is not made of single rows.
    """

    def fitted(positions: Ids) -> Approximation:
        count = len(positions)
        rows = marks.base_mean.repeat(count, 1)
        residual = torch.ones(count) if width else None
        ids = torch.full((count, width), -1) if width else None
        weights = torch.zeros(count, width) if width else None
        for at in range(0, count, _TARGETS):
            targets, useful = marks.targets(positions[at : at + _TARGETS])
            if not useful.size:
                continue
            found, where = approximate(targets[useful]), torch.from_numpy(useful + at)
            rows[where] = found.rows
            if residual is not None and found.residual is not None:
                residual[where] = found.residual
            if ids is not None and weights is not None:
                assert found.ids is not None
                assert found.weights is not None
                ids[where], weights[where] = found.ids, found.weights
        device = marks.task.device
        return Approximation(
            rows.to(device),
            None if residual is None else residual.to(device),
            None if ids is None else ids.to(device),
            None if weights is None else weights.to(device),
        )

    return fitted


def moments(marks: Landmarks) -> tuple[Tensor, Tensor, Tensor]:
    """Give CᵀC, CᵀP and PᵀP of centred donor rows C and base rows P, in fp64."""
    columns, base_columns = marks.atoms.shape[1], marks.task.base.columns
    own = torch.zeros(columns, columns, dtype=torch.float64)
    across = torch.zeros(columns, base_columns, dtype=torch.float64)
    base = torch.zeros(base_columns, base_columns, dtype=torch.float64)
    blocks = zip(_wide(marks.atoms), _rows(marks.task.base, marks.pairs[:, 1]), strict=True)
    for atoms, rows in blocks:
        centred = rows - marks.base_center.double()
        own += atoms.T @ atoms
        across += atoms.T @ centred
        base += centred.T @ centred
    return own, across, base


def linear(marks: Landmarks, weights: Tensor) -> Fitted:
    """Map donor rows by `weights` [columns, base columns] in fp64: y = (x - mean) W + mean."""

    def approximate(targets: Tensor) -> Approximation:
        # Always the same shape, so that a row depends on nothing beside it.
        padded = torch.zeros(_TARGETS, targets.shape[1], dtype=torch.float64)
        padded[: len(targets)] = targets
        rows = (padded @ weights)[: len(targets)] + marks.base_center.double()
        return Approximation(rows.float())

    return fitted_in_blocks(marks, approximate)
