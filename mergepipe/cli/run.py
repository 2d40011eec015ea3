"""`mergepipe run`: do what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergepipe.cli.finishing import Sign
from mergepipe.cli.options import (
    AllowCommands,
    Compat,
    Device,
    Errors,
    Html,
    Json,
    MaxMemory,
    NoCache,
    Out,
    Plugin,
    RecipeFile,
    ScoreDtype,
    Set,
    Threads,
)
from mergepipe.cli.search import run_tuned
from mergepipe.cli.signals import stoppable

if TYPE_CHECKING:
    from mergepipe.cli.scoring import Shown
    from mergepipe.evaluate import Settings
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
    sign: Sign = None,
    score_dtype: ScoreDtype = "float32",
    html: Html = None,
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
    no_cache: NoCache = False,
    allow_commands: AllowCommands = False,
    errors: Errors = False,
    json: Json = False,
) -> None:
    """Merge, going on where a run that was cut off stopped; score and publish what comes out."""
    from mergepipe import pipeline
    from mergepipe.cli import finishing, progress, scoring
    from mergepipe.execute import Resources

    with stoppable():
        prepared = pipeline.prepare(
            recipe,
            settings=overrides or (),
            out=out,
            resources=Resources(threads, max_memory, device, score_dtype),
            plugins=plugin or (),
            compat=compat,
            tell=progress.tell,
        )
        allowed = frozenset({"commands"} if allow_commands else ())
        with scoring.opened(prepared.evaluations, allowed, cached=not no_cache) as settings:
            shown = scoring.Shown(json=json, errors=errors, html=html)
            finishing.check(prepared.recipe.publish, sign, overwrite=overwrite)
            if prepared.recipe.search is not None:
                how = pipeline.Searching(plugins=tuple(plugin or ()), overwrite=overwrite)
                made = run_tuned(prepared, how, settings, shown, sync=not no_sync)
            else:
                made = _run(prepared, settings, shown, overwrite=overwrite, sync=not no_sync)
            if made is not None:
                finishing.finish(made, prepared.recipe.publish, sign, overwrite=overwrite)


def _run(
    prepared: Prepared, settings: Settings, shown: Shown, *, overwrite: bool, sync: bool
) -> Path | None:
    from mergepipe import pipeline
    from mergepipe.cli import progress, scoring
    from mergepipe.cli.console import print_warnings
    from mergepipe.evaluate import Scores
    from mergepipe.kernels.compiling import is_cold

    print_warnings(prepared.warnings)
    if is_cold():
        progress.tell("compiling kernels for this machine, once: about ten seconds")
    if prepared.recipe.compares or not prepared.plans:
        with scoring.progress(settings) as (notice, told):
            scores = pipeline.compare(prepared, notice=notice, settings=told)
        scoring.show(scores, shown, reference=pipeline.compared_with(prepared))
        return None
    with progress.shown() as report:
        outcome = pipeline.merge(
            prepared, overwrite=overwrite, sync=sync, report=report, tell=progress.tell
        )
    print_warnings(outcome.warnings)
    progress.print_outcome(outcome)
    scores = Scores(())
    if prepared.evaluations:
        with scoring.progress(settings) as (notice, told):
            scores = pipeline.evaluate_result(prepared, outcome, notice=notice, settings=told)
    warnings = (*prepared.warnings, *outcome.warnings)
    scoring.show(
        scores,
        shown,
        reference=pipeline.reference_of(prepared),
        beside=progress.as_json(outcome, warnings),
    )
    return outcome.folder
