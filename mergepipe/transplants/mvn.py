"""Draw missing rows from the normal distribution that the base's rows have.

John Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021.
https://nlp.stanford.edu/~johnhew/vocab-expansion.html

    μ = mean of the base's rows,  Σ = (1/n) Σ_b (E[b] - μ)(E[b] - μ)ᵀ = L Lᵀ
    y_t = μ + s L z_t,   z ~ N(0, I) by (seed, token, side)

`scale` is s. Where the base has no more rows than columns Σ has no inverse; 10⁻⁶ of its mean
variance is then added to the diagonal. A token gets the same row whatever others there are.
"""

from __future__ import annotations

import torch
from pydantic import Field, NonNegativeFloat

from mergepipe.transplant import Approximation, Fitted, Ids, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.combining import base_tokens, draw
from mergepipe.transplant.task import Task

_BLOCK = 4096  # rows that are held in fp64 at once
_JITTER = 1e-6  # of the mean variance


class Parameters(Base):
    """How far from the mean."""

    scale: NonNegativeFloat = Field(1.0, description="factor on the deviations from the mean")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Read the base's rows twice: for their mean, and for their covariance."""
    mean, covariance = moments(task)
    columns = task.base.columns
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        jitter = _JITTER * covariance.trace() / columns
        jittered = covariance + max(float(jitter), _JITTER) * torch.eye(columns).to(covariance)
        factor = torch.linalg.cholesky_ex(jittered).L

    def fitted(positions: Ids) -> Approximation:
        rows = torch.empty(len(positions), columns, device=task.device)
        for row, position in enumerate(positions):
            drawn = draw(task, int(task.missing[position]), columns)
            rows[row] = (mean + parameters.scale * (factor @ drawn)).float()
        return Approximation(rows)

    return fitted


def moments(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the mean [d] and the covariance [d, d] of the base's ordinary rows, in fp64."""
    ids = base_tokens(task)
    blocks = [ids[at : at + _BLOCK] for at in range(0, len(ids), _BLOCK)]
    columns = task.base.columns
    mean = torch.zeros(columns, dtype=torch.float64, device=task.device)
    covariance = torch.zeros(columns, columns, dtype=torch.float64, device=task.device)
    for block in blocks:
        mean += task.base[block].double().sum(0) / len(ids)
    for block in blocks:
        off = task.base[block].double() - mean
        covariance += off.T @ off / len(ids)
    return mean, covariance


METHOD = TransplantMethod(Parameters, fit)
