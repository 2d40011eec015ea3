"""Sinks that keep in memory what they are given, and hold `execute` to what it promises them."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from merges import planned
from numpy.typing import NDArray

from mergepipe.checkpoint import DTYPES, torch_dtype
from mergepipe.execute import execute
from mergepipe.plan import Plan, Step


@dataclass
class Kept:
    """What was made: bytes, digests of inputs and notes by tensor."""

    data: dict[str, bytearray] = field(default_factory=dict)
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    restarts: list[str] = field(default_factory=list)
    threads: dict[str, int] = field(default_factory=dict)

    def write(self, step: Step, start: int, data: NDArray[np.uint8]) -> None:
        if start == 0 and self.data.get(step.name):
            self.restarts.append(step.name)
        if start == 0:
            self.data[step.name] = bytearray()
        ident = threading.get_ident()
        assert self.threads.setdefault(step.name, ident) == ident, "one thread makes a step"
        assert len(self.data[step.name]) == start * DTYPES[step.dtype].itemsize, "in order"
        self.data[step.name] += data.tobytes()

    def finish(self, step: Step, inputs: tuple[str, ...], note: str) -> None:
        assert step.name not in self.notes, "once"
        assert len(self.data[step.name]) == DTYPES[step.dtype].itemsize * step.numel, "whole"
        self.inputs[step.name], self.notes[step.name] = inputs, note

    def said(self) -> dict[str, str]:
        """The notes that say something."""
        return {name: note for name, note in self.notes.items() if note}

    def tensor(self, step: Step) -> torch.Tensor:
        words = np.frombuffer(bytes(self.data[step.name]), np.uint8).copy()
        if not words.size:
            return torch.empty(step.shape, dtype=torch_dtype(step.dtype))
        return torch.from_numpy(words).view(torch_dtype(step.dtype)).reshape(step.shape)


class Dropped:
    """Forgets everything."""

    def write(self, step: Step, start: int, data: NDArray[np.uint8]) -> None:
        """Take bytes."""

    def finish(self, step: Step, inputs: tuple[str, ...], note: str) -> None:
        """Take a note."""


def make(plan: Plan, *, done: Collection[str] = (), **options: Any) -> Kept:
    """Execute a plan; what was made."""
    sink = Kept()
    execute(plan, sink, done=done, **options)
    assert sorted(sink.notes) == sorted(step.name for step in plan.steps if step.name not in done)
    return sink


def plan_of(folder: Any, spec: dict[str, Any], **options: Any) -> Plan:
    """The plan of a recipe of one merge over models in `folder`."""
    return planned(folder, spec, **options).plans[-1]


def made_tensors(plan: Plan, **options: Any) -> dict[str, torch.Tensor]:
    sink = make(plan, **options)
    return {step.name: sink.tensor(step) for step in plan.steps}
