"""Give each row as the mean of the shared tokens that are nearest to it in the donor.

The method, its metrics and its weights are mergekit-tokensurgeon's (Goddard et al., "Arcee's
MergeKit", 2024, https://arxiv.org/abs/2403.13257).

    Z = rows of the k shared tokens nearest to x_t in the donor, at distances d_i
    y_t = Σ_i w_i p_i, over their rows in the base

`distance_proportional`: w_i ∝ 1 / d_i, and by the cosine w_i ∝ max(cos_i, 0) (mergekit keeps
negative ones); `barycentric`: the w of Σ w = 1 that make x_t of Z best, `least_squares`: of any
sum.

    k = 2, distances 1 and 3   →   y_t = 0.75 p_1 + 0.25 p_2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mergepipe.transplant import Approximation, Fitted, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.landmarks import Landmarks, fitted_in_blocks, landmarks, mix
from mergepipe.transplant.nearest import nearest, unit
from mergepipe.transplant.task import Task

Metric: TypeAlias = Literal["euclidean", "cosine"]
Scheme: TypeAlias = Literal["distance_proportional", "barycentric", "least_squares"]
_NEAR = 1e-6


class Parameters(Base):
    """How many neighbours, what is near, and how they weigh."""

    k: PositiveInt = Field(64, description="shared tokens that each row is the mean of")
    metric: Metric = Field("euclidean", description="what is near")
    weights: Scheme = Field("distance_proportional", description="how neighbours weigh")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Read the shared tokens' rows; neighbours are looked for as they are asked for."""
    marks = landmarks(task, center=False)
    k = min(parameters.k, len(marks.atoms))
    keys = _keys(marks, parameters.metric)

    def approximate(targets: Tensor) -> Approximation:
        ids = nearest(_queries(targets, parameters.metric), keys, k)[1]
        points, wide = marks.atoms[ids].double(), targets.double()
        if parameters.weights == "distance_proportional":
            weights = _by_distance(wide, points, parameters.metric)
        else:
            weights = _SOLVED[parameters.weights](wide, points)
        made = torch.einsum("nk,nkd->nd", weights, points)
        residual = (wide - made).norm(dim=1) / wide.norm(dim=1)
        rows = mix(marks, ids.numpy(), weights.numpy())
        base_ids = torch.from_numpy(marks.pairs[ids.numpy(), 1])
        return Approximation(rows, residual.float(), base_ids, weights.float())

    return fitted_in_blocks(marks, approximate, k)


def _keys(marks: Landmarks, metric: Metric) -> Tensor:
    """Give vectors whose products with the queries order the landmarks: [n, columns (+ 1)]."""
    if metric == "cosine":
        return unit(marks.atoms)
    # |x - a|² = |x|² - 2 (x·a - |a|² / 2)
    half = marks.atoms.double().square().sum(1, keepdim=True) / 2
    return torch.cat([marks.atoms, -half.float()], 1)


def _queries(targets: Tensor, metric: Metric) -> Tensor:
    if metric == "cosine":
        return unit(targets)
    return torch.cat([targets, torch.ones(len(targets), 1)], 1)


def _by_distance(targets: Tensor, points: Tensor, metric: Metric) -> Tensor:
    if metric == "cosine":
        cosines = torch.cosine_similarity(points, targets[:, None], dim=2)
        weights = cosines.clamp(min=0)
    else:
        weights = 1 / (points - targets[:, None]).norm(dim=2).clamp(min=_NEAR)
    return weights / weights.sum(1, keepdim=True).clamp(min=_NEAR)


def _barycentric(targets: Tensor, points: Tensor) -> Tensor:
    count, k = points.shape[:2]
    system = torch.ones(count, k + 1, k + 1, dtype=torch.float64)
    system[:, :k, :k] = points @ points.mT
    system[:, k, k] = 0
    wanted = torch.ones(count, k + 1, 1, dtype=torch.float64)
    wanted[:, :k] = points @ targets[:, :, None]
    solved: Tensor = torch.linalg.lstsq(system, wanted, driver="gelsd").solution
    return solved[:, :k, 0]


def _least_squares(targets: Tensor, points: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.lstsq(points.mT, targets[:, :, None], driver="gelsd").solution
    return solved[:, :, 0]


_SOLVED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "barycentric": _barycentric,
    "least_squares": _least_squares,
}
METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"donor table"}))
