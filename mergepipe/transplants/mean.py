"""Give every missing token the mean of the base's rows.

Ordinary tokens of the base that have a row are averaged; special tokens and padding are not.

    y_t = (1/n) Σ_b E[b]
"""

from __future__ import annotations

from mergepipe.transplant import Fitted, Parameters, TransplantMethod
from mergepipe.transplant.combining import combined, padded
from mergepipe.transplant.task import Task


def fit(task: Task, _: Parameters) -> Fitted:
    """Nothing tells one token from another: none has weights of its own."""
    return combined(task, lambda positions: padded(task, [{}] * len(positions)), "mean")


METHOD = TransplantMethod(Parameters, fit)
