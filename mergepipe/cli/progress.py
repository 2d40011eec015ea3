"""Progress of long work, and its result: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mergepipe.cli.console import messages, size
from mergepipe.errors import printable
from mergepipe.pipeline import Outcome
from mergepipe.plan import Plan

__all__ = ["as_json", "print_outcome", "shown", "tell"]

Reporter = Callable[[Plan], Callable[[int], None]]
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def shown() -> Iterator[Reporter]:
    """Give a function that starts the progress of a plan and returns its `advance(bytes)`."""
    if not messages.is_terminal:
        yield _Lines
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages, transient=True) as bars:

        def start(plan: Plan) -> Callable[[int], None]:
            task = bars.add_task(f"{plan.name} ({plan.spec.method})", total=plan.bytes_read)
            return lambda count: bars.advance(task, count)

        yield start


class _Lines:
    """Says every ten seconds how far a plan is."""

    def __init__(self, plan: Plan) -> None:
        self.name, self.total, self.done = plan.name, plan.bytes_read, 0
        self.started = self.spoke = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.spoke < _SECONDS_BETWEEN_LINES:
            return
        self.spoke = now
        rate = self.done / (now - self.started)
        left = max(0, self.total - self.done) / rate
        tell(
            f"{self.name}: {size(self.done)} of at most {size(self.total)}, "
            f"{size(rate)}/s, {left:.0f} s left"
        )


def tell(message: str) -> None:
    """Say something that is neither result nor warning, on one line."""
    messages.print(printable(message), markup=False, highlight=False, soft_wrap=True)


def print_outcome(outcome: Outcome) -> None:
    """Say where the result is."""
    tell(f"{outcome.folder}: {outcome.tensors} tensors, {outcome.parameters:,} parameters")


def as_json(outcome: Outcome, warnings: Sequence[str]) -> dict[str, object]:
    """Give the result of a merge as JSON has it."""
    return {
        "output": str(outcome.folder),
        "tensors": outcome.tensors,
        "parameters": outcome.parameters,
        "warnings": list(warnings),
    }
