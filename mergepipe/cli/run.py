"""`mergepipe run`: do what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergepipe.cli.options import Json, Out, RecipeFile, Set, Threads
from mergepipe.cli.signals import stoppable

__all__ = ["run"]


def run(
    recipe: RecipeFile,
    out: Out = None,
    overrides: Set = None,
    threads: Threads = None,
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")
    ] = False,
    no_sync: Annotated[
        bool,
        typer.Option(
            "--no-sync",
            help="Do not wait until the disk holds the bytes; after a power failure "
            "`mergepipe verify` tells.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Merge, going on where a run that was cut off stopped, and score what comes out."""
    with stoppable():
        sync = not no_sync
        _run(recipe, out, overrides or [], threads, overwrite=overwrite, sync=sync, json=json)


def _run(
    recipe: Path,
    out: Path | None,
    settings: list[str],
    threads: int | None,
    *,
    overwrite: bool,
    sync: bool,
    json: bool,
) -> None:
    from mergepipe import pipeline
    from mergepipe.cli import progress
    from mergepipe.cli.console import print_warnings
    from mergepipe.evaluate import ScoreRow

    prepared = pipeline.prepare(recipe, settings=settings, out=out, threads=threads)
    print_warnings(prepared.warnings)
    with progress.shown() as report:
        outcome = pipeline.merge(
            prepared, overwrite=overwrite, sync=sync, report=report, tell=progress.tell
        )
    print_warnings(outcome.warnings)
    progress.print_outcome(outcome)
    scores: tuple[ScoreRow, ...] = ()
    if prepared.evaluations:
        with progress.scoring() as notice:
            scores = pipeline.evaluate_result(prepared, outcome, notice=notice)
    if json:
        progress.print_json(outcome, (*prepared.warnings, *outcome.warnings), scores)
    else:
        progress.print_scores(scores)
