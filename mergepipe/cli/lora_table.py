"""What an adapter holds, as a table or as JSON, and how far the work is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mergepipe.cli.console import messages, print_warnings, results
from mergepipe.cli.progress import tell
from mergepipe.errors import printable
from mergepipe.lora import Advance, Part, Result, Row, rows_of, share_held

__all__ = ["progress", "show"]

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress() -> Iterator[Advance]:
    """Give a function that shows a bar on a terminal, and a line every ten seconds elsewhere."""
    if not messages.is_terminal:
        yield _lines()
        return
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True) as bars:
        task = bars.add_task("")

        def advance(done: int, total: int, name: str) -> None:
            bars.update(task, completed=done, total=total, description=printable(name))

        yield advance


def _lines() -> Advance:
    spoke = time.monotonic()

    def advance(done: int, total: int, name: str) -> None:
        nonlocal spoke
        if time.monotonic() - spoke >= _SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            tell(f"{done / total:.0%} of the elements done; now {name}")

    return advance


def show(result: Result, *, json_only: bool) -> None:
    """Print a result, for people or as JSON."""
    if json_only:
        print(json.dumps(_json(result), indent=2))  # noqa: T201
        return
    rows = rows_of(result.parts)
    print_warnings(result.warnings)
    results.print(_table([row for row in rows if row.how != "left out"]))
    count = sum(1 for part in result.parts if part.rank)
    updates = "1 update" if count == 1 else f"{count} updates"
    tell(f"{result.folder}: {updates}; {share_held(result.parts):.2%} of all change is held")


def _table(rows: list[Row]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    grid.add_column("module", no_wrap=True)
    for heading in ("tensors", "rank", "energy kept", "share of change"):
        grid.add_column(heading, justify="right")
    for row in rows:
        cells = (str(row.count), _ranks(row), f"{row.energy:.2%}", f"{row.change:.2%}")
        grid.add_row(Text(printable(row.kind)), *cells)
    return grid


def _ranks(row: Row) -> str:
    if row.how == "whole":
        return "whole"
    low, high = row.ranks
    return str(low) if low == high else f"{low} to {high}"


def _json(result: Result) -> dict[str, object]:
    return {
        "output": str(result.folder),
        "held": share_held(result.parts),
        "warnings": list(result.warnings),
        "kinds": [_row(row) for row in rows_of(result.parts)],
        "tensors": [_part(part) for part in result.parts],
    }


def _row(row: Row) -> dict[str, object]:
    return {
        "kind": row.kind,
        "how": row.how,
        "count": row.count,
        "ranks": list(row.ranks),
        "energy": row.energy,
        "share": row.change,
    }


def _part(part: Part) -> dict[str, object]:
    return {
        "name": part.name,
        "how": part.how,
        "rank": part.rank,
        "energy": share_held([part]),
        "change": part.change,
    }
