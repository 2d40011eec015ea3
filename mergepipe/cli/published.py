"""What was published: a line a target, or JSON."""

from __future__ import annotations

import json as text_of
from collections.abc import Sequence
from dataclasses import asdict

from mergepipe.cli.console import results, size
from mergepipe.errors import printable
from mergepipe.publish import Published
from mergepipe.publish.words import counted

__all__ = ["as_json", "lines", "show"]


def as_json(done: Sequence[Published], *, dry_run: bool = False) -> list[dict[str, object]]:
    """Give what was published as JSON has it."""
    return [{**asdict(one), "dry_run": dry_run} for one in done]


def show(done: Sequence[Published], *, json: bool, dry_run: bool = False) -> None:
    """Print what was published."""
    if json:
        print(text_of.dumps(as_json(done, dry_run=dry_run), indent=2))  # noqa: T201
        return
    for line in lines(done, dry_run=dry_run):
        results.print(line, markup=False, highlight=False, soft_wrap=True)


def lines(done: Sequence[Published], *, dry_run: bool = False) -> list[str]:
    """Say of each target what was sent."""
    verb = "would send" if dry_run else "sent"
    return [
        printable(
            f"{one.url}: {verb} {counted(len(one.sent))}, {size(one.size)}"
            + (f", {len(one.there)} there already" if one.there else "")
        )
        for one in done
    ]
