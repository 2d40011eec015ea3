"""`mergepipe reproduce`: make a result again, and compare its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergepipe.cli.options import AllowCommands, Device, Json, MaxMemory, Plugin, Threads
from mergepipe.cli.signals import stoppable

if TYPE_CHECKING:
    from mergepipe.evaluate import Scores
    from mergepipe.pipeline import Outcome, Prepared

__all__ = ["reproduce"]


def reproduce(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint that `run` wrote.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--inputs", metavar="FOLDER", help="Where the models are. Repeatable."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="LABEL=PATH", help="Where one model is. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Keep what is made, as this folder.")
    ] = None,
    plugin: Plugin = None,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    device: Device = None,
    *,
    scores: Annotated[bool, typer.Option("--scores", help="Score again too.")] = False,
    allow_commands: AllowCommands = False,
    json: Json = False,
) -> None:
    """Make a result again from its manifest, and say whether the bytes are the same."""
    from mergepipe import pipeline
    from mergepipe.cli import progress, reproduced, scoring
    from mergepipe.execute import Resources

    allowed = frozenset({"commands"} if allow_commands else ())

    def score(prepared: Prepared, outcome: Outcome) -> Scores:
        with (
            scoring.opened(prepared.evaluations, allowed, cached=False) as settings,
            scoring.progress(settings) as (notice, told),
        ):
            return pipeline.evaluate_result(prepared, outcome, notice=notice, settings=told)

    with stoppable(), progress.shown() as report:
        found = pipeline.reproduce(
            folder,
            pipeline.Again(
                inputs=tuple(inputs or ()),
                models=reproduced.named_models(model or ()),
                plugins=tuple(plugin or ()),
                resources=Resources(threads, max_memory, device),
                out=out,
                allowed=allowed,
                score=score if scores else None,
                report=report,
                tell=progress.tell,
            ),
        )
    reproduced.show(folder, found, json_only=json)
