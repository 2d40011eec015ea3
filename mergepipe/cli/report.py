"""`mergepipe report`: a run as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergepipe.cli.options import Plugin, Threads
from mergepipe.cli.signals import stoppable

__all__ = ["report"]


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="What `run` or `search` wrote, or a search's folder."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The page; default: report.html in RUN."),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs",
            metavar="FOLDER",
            help="Where the models are that went in: the recipe's folder, or theirs.",
        ),
    ] = None,
    plugin: Plugin = None,
    threads: Threads = None,
) -> None:
    """Write a page about a run: scores, parameters, task vectors, the search, time."""
    from mergepipe.cli import inspect_table
    from mergepipe.cli.console import print_warnings, results
    from mergepipe.pipeline import reporting

    with stoppable(), inspect_table.progress() as progress:
        made = reporting.report(
            run,
            out=out,
            inputs=inputs,
            plugins=plugin or (),
            threads=threads,
            progress=progress,
        )
    print_warnings(made.missing)
    results.print(f"report: {made.file}", markup=False, highlight=False, soft_wrap=True)
