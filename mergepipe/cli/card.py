"""`mergepipe card`: the model card of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["card"]


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint that `run` wrote.")],
    license: Annotated[  # noqa: A002 (the hub's word)
        str | None,
        typer.Option("--license", metavar="ID", help="The result's licence, such as apache-2.0."),
    ] = None,
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse inputs whose licences conflict.")
    ] = False,
    show: Annotated[bool, typer.Option("--print", help="Print the card; write nothing.")] = False,
) -> None:
    """Write README.md from the folder alone: scores, recipe, licences, citations."""
    from mergepipe import pipeline
    from mergepipe.cli.console import print_warnings, results

    if show:
        made, warnings = pipeline.card_of(folder, strict=strict, license=license)
        print_warnings(warnings)
        typer.echo(made.text, nl=False)
        return
    print_warnings(pipeline.write_card(folder, strict=strict, license=license))
    line = f"card: {folder / 'README.md'}"
    results.print(line, markup=False, highlight=False, soft_wrap=True)
