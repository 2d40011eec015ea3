"""`mergepipe run`: do what a recipe says."""

from __future__ import annotations

from typing import Annotated

import typer

from mergepipe.cli.options import Json, Out, RecipeFile, Set, Threads

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
    json: Json = False,
) -> None:
    """Merge, and score what comes out."""
    from mergepipe import pipeline
    from mergepipe.cli import progress
    from mergepipe.cli.console import print_warnings
    from mergepipe.evaluate import ScoreRow

    prepared = pipeline.prepare(recipe, settings=overrides or (), out=out, threads=threads)
    print_warnings(prepared.warnings)
    with progress.shown() as report:
        outcome = pipeline.merge(prepared, overwrite=overwrite, report=report)
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
