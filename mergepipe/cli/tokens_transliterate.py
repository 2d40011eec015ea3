"""`mergepipe tokens transliterate`: a tokenizer that also knows its pieces in Latin letters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["transliterate"]


def transliterate(
    base: Annotated[Path, typer.Argument(help="A model's folder, or a tokenizer's: a Unigram.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder for the tokenizer.")],
    table: Annotated[
        Path | None,
        typer.Option("--table", help="Lines `text<TAB>Latin`, longest first; default: uroman."),
    ] = None,
    merge: Annotated[
        Literal["max", "min", "average"],
        typer.Option("--merge", help="Whose score, where several pieces have one transliteration."),
    ] = "max",
) -> None:
    """Give a Unigram tokenizer its pieces in Latin letters too, for the method transmi."""
    from mergepipe.cli.console import results
    from mergepipe.errors import EnvironmentFault, InputError, Problem
    from mergepipe.transplant.transliteration import transliterator, write_extended

    if table is not None and not table.is_file():
        raise InputError(Problem(str(table), "there is no such file"))
    try:
        count = write_extended(base, out, transliterator(table), merge)
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise EnvironmentFault(Problem(str(out), what)) from error
    results.print(f"{out}: {count:,} new tokens", markup=False, highlight=False, soft_wrap=True)
