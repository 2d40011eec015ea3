"""Draw every column of a missing row with the mean and deviation that it has in the base's rows.

The fallback of WECHSEL (Minixhofer et al., 2022, https://arxiv.org/abs/2112.06598), OFA and FOCUS
for tokens that they cannot place.

    y_td = μ_d + σ_d z_td,   z ~ N(0, 1) by (seed, token, side)

A token gets the same row whatever others there are.
"""

from __future__ import annotations

from mergepipe.transplant import Fitted, Parameters, TransplantMethod
from mergepipe.transplant.combining import combined, padded
from mergepipe.transplant.task import Task


def fit(task: Task, _: Parameters) -> Fitted:
    """No token has weights, so that all are drawn."""
    return combined(task, lambda positions: padded(task, [{}] * len(positions)), "normal")


METHOD = TransplantMethod(Parameters, fit)
