"""What every command prints with: results to stdout, messages to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console

from mergepipe.errors import MergepipeError

__all__ = ["messages", "print_error", "print_warnings", "results", "size"]

results = Console()
messages = Console(stderr=True)


def print_error(error: MergepipeError) -> None:
    """One line a problem, as plain text: nothing in it is markup."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201


def print_warnings(warnings: Iterable[str]) -> None:
    """One line a warning."""
    for warning in warnings:
        line = f"warning: {warning}"
        messages.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def size(count: float) -> str:
    """`1.5 GB`: decimal units, as disks and file managers give them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
