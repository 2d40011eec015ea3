"""`mergepipe search`: tune the numbers and choices of a recipe, then merge the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergepipe.cli.options import (
    AllowCommands,
    Compat,
    Device,
    Errors,
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
from mergepipe.cli.signals import stoppable

if TYPE_CHECKING:
    from mergepipe.cli.scoring import Shown
    from mergepipe.evaluate import Settings
    from mergepipe.pipeline import Prepared, Searching

__all__ = ["run_tuned", "search"]


def search(
    recipe: RecipeFile,
    out: Out = None,
    overrides: Set = None,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    device: Device = None,
    plugin: Plugin = None,
    compat: Compat = None,
    score_dtype: ScoreDtype = "float32",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Candidates at the same time, in processes; default: one per core, "
            "if so many models fit in memory.",
        ),
    ] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", min=1, help="Candidates, in place of the recipe's.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            envvar="MERGEPIPE_STORAGE",
            metavar="URL",
            help="Of the database where Optuna keeps the trials; default: a file.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the trials to FILE.html or FILE.png."),
    ] = None,
    *,
    no_merge: Annotated[
        bool, typer.Option("--no-merge", help="Stop at the best recipe; merge nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")
    ] = False,
    no_cache: NoCache = False,
    allow_commands: AllowCommands = False,
    errors: Errors = False,
    json: Json = False,
) -> None:
    """Tune what a recipe searches, going on where it was cut off; merge and score the best."""
    from mergepipe import pipeline
    from mergepipe.cli import finishing, progress, scoring
    from mergepipe.execute import Resources

    changed = [*(overrides or ()), *([] if budget is None else [f"search.budget={budget}"])]
    with stoppable():
        prepared = pipeline.prepare(
            recipe,
            settings=changed,
            out=out,
            resources=Resources(threads, max_memory, device, score_dtype),
            plugins=plugin or (),
            compat=compat,
            tell=progress.tell,
        )
        allowed = frozenset({"commands"} if allow_commands else ())
        with scoring.opened(prepared.evaluations, allowed, cached=not no_cache) as settings:
            how = pipeline.Searching(
                workers=workers, storage=storage, plugins=tuple(plugin or ()), overwrite=overwrite
            )
            shown = scoring.Shown(json=json, errors=errors)
            spec = prepared.recipe.publish
            finishing.check(spec, None, overwrite=overwrite)
            made = run_tuned(prepared, how, settings, shown, merge=not no_merge, plot=plot)
            if made is not None:
                finishing.finish(made, spec, None, overwrite=overwrite)


def run_tuned(
    prepared: Prepared,
    how: Searching,
    settings: Settings,
    shown: Shown,
    *,
    merge: bool = True,
    plot: Path | None = None,
    sync: bool = True,
) -> Path | None:
    """Search, say what was found, do what the best recipe says, and give its checkpoint."""
    from dataclasses import replace

    from mergepipe import pipeline
    from mergepipe.cli import progress, scoring, search_table
    from mergepipe.cli.console import print_warnings
    from mergepipe.evaluate import Scores
    from mergepipe.search import plots

    drawn = None if plot is None else plots.plot_file(plot)
    print_warnings(prepared.warnings)
    with search_table.progress() as report:
        found = pipeline.search(
            prepared,
            replace(
                how,
                allowed=settings.allowed,
                cache=None if settings.cache is None else settings.cache.file,
                report=report,
                tell=progress.tell,
            ),
        )
    print_warnings(found.warnings)
    if drawn is not None:
        plots.draw(drawn, found.genes, found.names, found.trials)
        progress.tell(f"plots: {drawn}")
    if not shown.json:
        search_table.show(found)
    progress.tell(f"the best recipe: {found.best}")
    beside: dict[str, object] = {"search": search_table.as_json(found)}
    if prepared.ensemble is not None:
        _score_mixture(prepared, found.best, settings, shown, beside, how.plugins)
        return None
    if merge and prepared.compositions is not None:
        _write_adapter(prepared, found.best, settings, shown, beside, how)
        return None
    if not merge or prepared.service is not None:  # the weights are the service's
        scoring.show(Scores(()), shown, beside=beside)
        return None
    best = pipeline.prepare(
        found.best, out=prepared.target, resources=prepared.resources, plugins=how.plugins
    )
    best = replace(best, evaluations=prepared.evaluations)  # whose files lie beside the recipe
    with progress.shown() as bars:
        outcome = pipeline.merge(
            best, overwrite=how.overwrite, sync=sync, report=bars, tell=progress.tell
        )
    progress.print_outcome(outcome)
    held = replace(settings, part="final")
    if any(one.split for one in best.evaluations):
        progress.tell("scored on the items that no candidate was chosen by, where there is a split")
    with scoring.progress(held) as (notice, told):
        scores = pipeline.evaluate_result(best, outcome, notice=notice, settings=told)
    scoring.show(
        scores,
        shown,
        reference=pipeline.reference_of(best),
        beside={**progress.as_json(outcome, found.warnings), **beside},
    )
    return outcome.folder


def _score_mixture(
    prepared: Prepared,
    best: Path,
    settings: Settings,
    shown: Shown,
    beside: Mapping[str, object],
    plugins: Sequence[Path],
) -> None:
    """Score the members and the best mixture; there are no weights to be written."""
    from dataclasses import replace

    from mergepipe import pipeline
    from mergepipe.cli import scoring

    found = pipeline.prepare(best, resources=prepared.resources, plugins=plugins)
    held = replace(settings, part="final")
    with scoring.progress(held) as (notice, told):
        scores = pipeline.compare(found, notice=notice, settings=told)
    scoring.show(scores, shown, reference="uniform", beside=beside)


def _write_adapter(
    prepared: Prepared,
    best: Path,
    settings: Settings,
    shown: Shown,
    beside: dict[str, object],
    how: Searching,
) -> None:
    """Write the best merge of adapters, and score it and its inputs on the server."""
    from dataclasses import replace

    from mergepipe import pipeline
    from mergepipe.cli import progress, scoring

    found = pipeline.prepare(
        best, out=prepared.target, resources=prepared.resources, plugins=how.plugins
    )
    out = pipeline.write_composition(found, overwrite=how.overwrite)
    progress.tell(f"the best adapter: {out}")
    held = replace(settings, part="final")
    with scoring.progress(held) as (notice, told):
        asked = replace(found, target=None, evaluations=prepared.evaluations)
        scores = pipeline.compare(asked, notice=notice, settings=told)
    scoring.show(scores, shown, reference="base", beside=beside)
