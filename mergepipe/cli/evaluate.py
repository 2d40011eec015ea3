"""`mergepipe eval`: score models side by side, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mergepipe.cli.options import AllowCommands, Errors, Html, Json, NoCache, Plugin
from mergepipe.cli.signals import stoppable

__all__ = ["evaluate"]

_MODELS = "A folder, org/name@revision, api:URL#MODEL or ensemble.yaml; label=... names it."
_USE = "An evaluator, as in bits_per_byte:data=texts.jsonl,limit=50; repeatable."


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=_MODELS)],
    use: Annotated[
        list[str], typer.Option("--use", "-u", metavar="NAME[:PARAMETER=VALUE,...]", help=_USE)
    ],
    plugin: Plugin = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Whom the others are compared with; default: the first."),
    ] = None,
    part: Annotated[
        Literal["search", "holdout", "final"] | None,
        typer.Option("--split", help="Score this part of evaluations that have a split."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="For evaluators that draw.")] = 0,
    device: Annotated[str, typer.Option("--device", help="Where models are asked.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option("--dtype", help="Of the weights while they are asked."),
    ] = "float32",
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the table to this file too.")
    ] = None,
    html: Html = None,
    *,
    no_cache: NoCache = False,
    allow_commands: AllowCommands = False,
    errors: Errors = False,
    json: Json = False,
) -> None:
    """Score models on evaluations, and say which differences between them are real."""
    from dataclasses import replace

    from mergepipe import pipeline
    from mergepipe.cli import scoring
    from mergepipe.errors import InputError, Problem, did_you_mean
    from mergepipe.evaluate import score
    from mergepipe.plugins import load_plugins

    with stoppable():
        load_plugins(plugin or ())
        evaluations = pipeline.read_uses(use, Path())
        named = pipeline.name_models(models)
        labels = [model.label for model in named]
        if reference is not None and reference not in labels:
            what = f"no model is named '{reference}'{did_you_mean(reference, labels)}"
            raise InputError(Problem("--reference", what))
        allowed = frozenset({"commands"} if allow_commands else ())
        with scoring.opened(evaluations, allowed, cached=not no_cache) as settings:
            chosen = replace(settings, part=part, seed=seed)
            with scoring.progress(chosen) as (notice, told):
                asked = pipeline.ask_models(named, dtype=dtype, device=device, notice=notice)
                scores = score(asked, evaluations, told)
            shown = scoring.Shown(json=json, errors=errors, markdown=markdown, html=html)
            scoring.show(scores, shown, reference=reference or labels[0])
