"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

__all__ = ["Json", "Out", "RecipeFile", "Set", "Threads"]

RecipeFile: TypeAlias = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Override a field of the recipe; repeatable."
    ),
]
Out: TypeAlias = Annotated[
    Path | None, typer.Option("--out", "-o", help="Output folder, in place of the recipe's.")
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option("--threads", min=1, help="Workers; default: one per core.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
