"""`mergepipe tokens`: what two tokenizers have in common, before their models are merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergepipe.cli.options import Json
from mergepipe.cli.tokens_align import align
from mergepipe.cli.tokens_transliterate import transliterate
from mergepipe.errors import InputError, Problem

if TYPE_CHECKING:
    from mergepipe.tokenizer import Vocabulary

__all__ = ["app", "compare", "read_both"]

app = typer.Typer(no_args_is_help=True, help="Look at tokenizers, and hold them side by side.")


@app.command("compare")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The model's folder, or a tokenizer's.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one's.")],
    texts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[TEXT]...", help='Text files, or JSON Lines with {"text": ...}.'),
    ] = None,
    parallel: Annotated[
        bool,
        typer.Option("--parallel", help="The files are translations of the first, line by line."),
    ] = False,
    *,
    as_json: Json = False,
) -> None:
    """Compare two tokenizers by what their tokens stand for, and by what they make of texts."""
    from mergepipe.cli import tokens_table
    from mergepipe.tokenizer.report import report
    from mergepipe.transplant.texts import read_texts, read_translations

    ours, theirs = read_both(a, b)
    files = {str(file): file for file in texts or ()}
    if parallel:
        said = read_translations(files, "--parallel")
    else:
        said = {name: read_texts(file) for name, file in files.items()}
    tokens_table.show(report(ours, theirs, said, is_parallel=parallel), json_only=as_json)


def read_both(a: str, b: str) -> tuple[Vocabulary, Vocabulary]:
    """Read two vocabularies, under names that tell them apart."""
    from mergepipe.tokenizer.reading import read_vocabulary

    folders = [_folder(text) for text in (a, b)]
    first, second = _labels(folders)
    return read_vocabulary(folders[0], first), read_vocabulary(folders[1], second)


def _folder(text: str) -> Path:
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    what = "there is no such folder" if not folder.exists() else "is a file, not a folder"
    fix = "give a folder with tokenizer.json; `hf download NAME --include 'token*'` fetches one"
    raise InputError(Problem(text, what, fix))


def _labels(folders: Sequence[Path]) -> list[str]:
    """Call both by their folders' names, or by as much of the paths as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    size = next(
        (n for n in range(1, len(parts[0])) if parts[0][-n:] != parts[1][-n:]), len(parts[0])
    )
    return ["/".join(one[-size:]) for one in parts]


app.command("align")(align)
app.command("transliterate")(transliterate)
