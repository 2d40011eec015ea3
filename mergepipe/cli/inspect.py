"""`mergepipe inspect`: look before merging."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mergepipe.cli.options import Json, Threads
from mergepipe.cli.signals import stoppable

__all__ = ["inspect"]


def inspect(
    named: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="A base, then models: folders or hub names. Or one recipe."
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="LABEL_OR_PATH", help="The base; default: the first."),
    ] = None,
    by: Annotated[
        Literal["kind", "layer"], typer.Option("--by", help="What the tables' rows are.")
    ] = "kind",
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="DIR|FILE", help="Draw heat maps: FILE.html or FILE.png."),
    ] = None,
    threads: Threads = None,
    *,
    json: Json = False,
) -> None:
    """Say how far models are from their base and from each other, and what that suggests."""
    from mergepipe import inspect as looking
    from mergepipe.cli import inspect_table
    from mergepipe.cli.console import print_warnings
    from mergepipe.cli.progress import tell
    from mergepipe.kernels.compiling import is_cold

    file = None if plot is None else looking.plot_file(plot)
    with stoppable():
        inputs = looking.open_inputs(named, base)
        print_warnings(() if json else inputs.warnings)
        if is_cold():
            tell("compiling kernels for this machine, once: about ten seconds")
        with inspect_table.progress() as reporter:
            report = looking.inspect(inputs, threads=threads, reporter=reporter)
        inspect_table.show(report, by=by, json_only=json)
        if file is not None:
            looking.draw(report, file)
            tell(f"heat maps: {file}")
