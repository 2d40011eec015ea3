"""Orthogonal matching pursuit in plain torch, for an accelerator.

Correlations are computed anew at every step in fp32; of the largest few, fp64 decides. It agrees
with `pursuit` wherever no more than `_FEW` correlations lie within fp32's error of the largest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergepipe.kernels.pursuit import Ints

__all__ = ["pursue_densely"]

_FEW = 16
_DEPENDENT = 1e-12
_EXPLAINED = 1e-6


def pursue_densely(
    atoms: Tensor, targets: Tensor, k: int, without: Ints | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give ids [n, k] (-1: stopped early), coefficients [n, k] and residuals [n, columns], fp64.

    None of the atoms in `without` is taken.
    """
    count, columns = targets.shape
    x = targets.double()
    ids = torch.full((count, k), -1, dtype=torch.int64, device=x.device)
    coefficients, chosen = x.new_zeros(count, k), x.new_zeros(count, k, columns)
    factor = x.new_zeros(k, k).fill_diagonal_(1).repeat(count, 1, 1)
    residual = x.clone()
    active = x.any(dim=1)
    left_out = torch.empty(0, dtype=torch.int64) if without is None else torch.from_numpy(without)
    barred = left_out.to(x.device).expand(count, -1)
    for step in range(k):
        best = _best(atoms, residual, torch.cat([ids[:, :step], barred], 1))
        atom = atoms[best].double()
        products = (chosen[:, :step] @ atom[:, :, None])[:, :, 0]
        row = torch.linalg.solve_triangular(
            factor[:, :step, :step], products[:, :, None], upper=False
        )[:, :, 0]
        square = atom.square().sum(1)
        left = square - row.square().sum(1)
        active &= left > _DEPENDENT * square
        ids[active, step] = best[active]
        chosen[active, step] = atom[active]
        factor[active, step, :step] = row[active]
        factor[active, step, step] = left[active].sqrt()
        lower = factor[:, : step + 1, : step + 1]
        taken = chosen[:, : step + 1]
        solved = torch.cholesky_solve(taken @ x[:, :, None], lower)[:, :, 0]
        coefficients[active, : step + 1] = solved[active]
        residual = x - (coefficients[:, :k, None] * chosen).sum(1)
        active &= residual.norm(dim=1) > _EXPLAINED * x.norm(dim=1)
        if not active.any():
            break
    return ids, coefficients, residual


def _best(atoms: Tensor, residual: Tensor, taken: Tensor) -> Tensor:
    estimates = (residual.float() @ atoms.T).abs()
    estimates.scatter_(1, taken.clamp(min=0), -1.0)
    few = estimates.topk(min(_FEW, len(atoms)), 1).indices.sort(1).values
    exact = (atoms[few].double() @ residual[:, :, None])[:, :, 0].abs()
    exact.masked_fill_(estimates.gather(1, few) < 0, -1.0)
    return few.gather(1, exact.argmax(1, keepdim=True))[:, 0]
