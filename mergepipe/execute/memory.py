"""The sink that keeps what is made as tensors in memory: the parameters of a live module."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergepipe.checkpoint import torch_dtype
from mergepipe.plan import Plan, Step

__all__ = ["TensorSink"]


class TensorSink:
    """Room for the tensors of one plan after the other, each rounded as a file would hold it.

    Tensors of floats are kept in the wider of the plan's dtype and `dtype`, so that a module of
    that dtype can have them as its parameters without another copy. A tensor of the same name,
    shape and dtype in a later plan is written over the earlier one: a module that has it changes.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._tensors: dict[str, Tensor] = {}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of the latest plan, by name."""
        return self._tensors

    def begin(self, plan: Plan) -> None:
        """Make room for the tensors of a plan; keep those of the latest that have the same form."""
        before, self._tensors = self._tensors, {}
        for step in plan.steps:
            dtype = self._kept_dtype(torch_dtype(step.dtype))
            held = before.pop(step.name, None)
            if held is None or held.shape != step.shape or held.dtype != dtype:
                held = torch.empty(step.shape, dtype=dtype)
            self._tensors[step.name] = held

    def write(self, step: Step, start: int, data: NDArray[np.uint8]) -> None:
        """Take the bytes of elements of `step` from flat index `start` on."""
        values = torch.from_numpy(data).view(torch_dtype(step.dtype))
        self._tensors[step.name].view(-1)[start : start + len(values)].copy_(values)

    def finish(self, step: Step, inputs: tuple[str, ...], note: str) -> None:
        """Know that a step is whole; nothing more is to be done."""

    def _kept_dtype(self, stored: torch.dtype) -> torch.dtype:
        if not stored.is_floating_point or stored.itemsize == 1:  # eight bits are widened by nobody
            return stored
        return torch.promote_types(stored, self._dtype)
