"""`mergepipe run`: do what a recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mergepipe.cli.options import (
    Compat,
    Device,
    Json,
    MaxMemory,
    Out,
    Plugin,
    RecipeFile,
    Set,
    Threads,
)
from mergepipe.cli.signals import stoppable

if TYPE_CHECKING:
    from mergepipe.pipeline import Prepared

__all__ = ["run"]


def run(
    recipe: RecipeFile,
    out: Out = None,
    overrides: Set = None,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    device: Device = None,
    plugin: Plugin = None,
    compat: Compat = None,
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
    from mergepipe import pipeline
    from mergepipe.cli import progress
    from mergepipe.execute import Resources

    with stoppable():
        prepared = pipeline.prepare_file(
            recipe,
            settings=overrides or (),
            out=out,
            resources=Resources(threads, max_memory, device),
            plugins=plugin or (),
            compat=compat,
            tell=progress.tell,
        )
        _run(prepared, overwrite=overwrite, sync=not no_sync, json=json)


def _run(prepared: Prepared, *, overwrite: bool, sync: bool, json: bool) -> None:
    from mergepipe import pipeline
    from mergepipe.cli import progress
    from mergepipe.cli.console import print_warnings
    from mergepipe.evaluate import ScoreRow
    from mergepipe.kernels.compiling import is_cold

    print_warnings(prepared.warnings)
    if is_cold():
        progress.tell("compiling kernels for this machine, once: about ten seconds")
    scores: tuple[ScoreRow, ...]
    if prepared.recipe.compares:
        with progress.scoring() as notice:
            scores = pipeline.compare(prepared, notice=notice)
        progress.print_comparison(scores, json_only=json)
        return
    with progress.shown() as report:
        outcome = pipeline.merge(
            prepared, overwrite=overwrite, sync=sync, report=report, tell=progress.tell
        )
    print_warnings(outcome.warnings)
    progress.print_outcome(outcome)
    scores = ()
    if prepared.evaluations:
        with progress.scoring() as notice:
            scores = pipeline.evaluate_result(prepared, outcome, notice=notice)
    if json:
        progress.print_json(outcome, (*prepared.warnings, *outcome.warnings), scores)
    else:
        progress.print_scores(scores)
