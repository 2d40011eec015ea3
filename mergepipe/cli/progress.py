"""Progress of long work, and its result: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
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

from mergepipe.cli.console import messages, results, size
from mergepipe.errors import printable
from mergepipe.evaluate import ScoreRow, results_jsonl, table
from mergepipe.pipeline import Outcome
from mergepipe.plan import Plan

__all__ = ["print_json", "print_outcome", "print_scores", "scoring", "shown", "tell"]

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


@contextmanager
def scoring() -> Iterator[Callable[[str], None]]:
    """Give a function that says which model is being scored."""
    with messages.status("scoring") as status:
        yield lambda label: status.update(f"scoring {printable(label)}")


def print_outcome(outcome: Outcome) -> None:
    """Say where the result is."""
    tell(f"{outcome.folder}: {outcome.tensors} tensors, {outcome.parameters:,} parameters")


def print_scores(rows: Sequence[ScoreRow]) -> None:
    """Print the table of scores."""
    if rows:
        results.print(table(rows))


def print_comparison(rows: Sequence[ScoreRow], *, json_only: bool) -> None:
    """Print the table of a comparison, or its results as JSON."""
    if json_only:
        found = [json.loads(line) for line in results_jsonl(rows).splitlines()]
        print(json.dumps({"results": found}, indent=2))  # noqa: T201
    else:
        print_scores(rows)


def print_json(outcome: Outcome, warnings: Sequence[str], rows: Sequence[ScoreRow]) -> None:
    """Print the result and its scores as one JSON object."""
    found = {
        "output": str(outcome.folder),
        "tensors": outcome.tensors,
        "parameters": outcome.parameters,
        "warnings": list(warnings),
        "results": [json.loads(line) for line in results_jsonl(rows).splitlines()],
    }
    print(json.dumps(found, indent=2))  # noqa: T201
