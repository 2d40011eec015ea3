"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

__all__ = [
    "AllowCommands",
    "Compat",
    "Device",
    "Errors",
    "Html",
    "Json",
    "MaxMemory",
    "NoCache",
    "Out",
    "Plugin",
    "RecipeFile",
    "ScoreDtype",
    "Set",
    "Threads",
]


def _as_bytes(text: str) -> int:
    from mergepipe.recipe import as_bytes

    try:
        size = as_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    assert isinstance(size, int), "as_bytes gives whole numbers"
    return size


_COMPAT = "mergekit-0.1.4"


def _as_compat(text: str) -> str:
    if text != _COMPAT:
        raise typer.BadParameter(f"only {_COMPAT} is known")
    return text


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
MaxMemory: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        parser=_as_bytes,
        help="Memory for tensors, such as 512MiB; default: a quarter of what is free, "
        "at most 4GiB.",
    ),
]
Device: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--device", help="Merge and score by torch there, such as cuda; default: the CPU."
    ),
]
ScoreDtype: TypeAlias = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option("--score-dtype", help="Of the weights while models are scored."),
]
Plugin: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", help="A Python file with a method or evaluator; it is run. Repeatable."
    ),
]
Compat: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--compat",
        metavar=_COMPAT,
        parser=_as_compat,
        help="Merge tensors of other shapes by that version's rules; default: they are refused.",
    ),
]
NoCache: TypeAlias = Annotated[
    bool, typer.Option("--no-cache", help="Ask the models again; neither read nor keep results.")
]
AllowCommands: TypeAlias = Annotated[
    bool,
    typer.Option("--allow-commands", help="Let `command` evaluations run the programs they name."),
]
Errors: TypeAlias = Annotated[
    bool, typer.Option("--errors", help="Show standard errors in the table of scores.")
]
Html: TypeAlias = Annotated[
    Path | None, typer.Option("--html", help="Write a page with all scores and differences too.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
