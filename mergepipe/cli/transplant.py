"""`mergepipe transplant`: give a model another tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergepipe.cli.options import Device, Json, MaxMemory, Threads
from mergepipe.cli.signals import stoppable

__all__ = ["transplant"]


def transplant(
    model: Annotated[str, typer.Argument(help="The model: its folder, or org/name on the hub.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer", metavar="DONOR", help="A model whose tokenizer it gets, or a folder."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")],
    method: Annotated[
        str, typer.Option("--method", help="How rows are made; `methods --transplant` lists.")
    ] = "auto",
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="The method's k, where it has one.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter of the method, or an option of the recipe's `transplant`; "
            "repeatable.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="For methods that draw.")] = 0,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            help="Texts, as JSON Lines: bits per byte before and after; `auto` chooses by them.",
        ),
    ] = None,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    device: Device = None,
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse tokenizers that cut numbers in other ways.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is shared and what it costs; make nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")
    ] = False,
    json: Json = False,
) -> None:
    """Give a model the tokenizer of another one; going on where a run was cut off."""
    from mergepipe import pipeline
    from mergepipe.cli import transplant_table
    from mergepipe.cli.console import print_warnings
    from mergepipe.execute import Resources

    asked = [*(overrides or ()), *([] if k is None else [f"k={k}"])]
    with stoppable():
        prepared = pipeline.prepare_transplant(
            model,
            tokenizer,
            method,
            asked + (["strict=true"] if strict else []),
            out=out,
            seed=seed,
            text=text,
            resources=Resources(threads, max_memory, device),
        )
        print_warnings(prepared.warnings)
        if dry_run:
            transplant_table.show_plan(prepared, json_only=json)
        else:
            transplant_table.run(prepared, overwrite=overwrite, json_only=json)
