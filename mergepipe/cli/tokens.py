"""`mergepipe tokens`: what two tokenizers have in common, before their models are merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergepipe.cli.options import Json
from mergepipe.cli.tokens_align import align
from mergepipe.errors import InputError, Problem

if TYPE_CHECKING:
    from mergepipe.tokenizer import Vocabulary

__all__ = ["app", "compare", "read_both", "read_texts"]

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

    ours, theirs = read_both(a, b)
    said = {str(file): read_texts(file, by_line=parallel) for file in texts or ()}
    if parallel:
        _check_parallel(said)
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


def read_texts(file: Path, *, by_line: bool) -> list[str]:
    """Give the texts of a file: those of its records, its lines, or the whole of it."""
    from mergepipe.evaluate import read_jsonl

    if not file.is_file():
        raise InputError(Problem(str(file), "there is no such file"))
    if file.suffix == ".jsonl":
        return [record["text"] for record in read_jsonl(file, {"text": str}).values()]
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(file), f"cannot be read as UTF-8 text: {error}")) from error
    return text.splitlines() if by_line else [text]


def _check_parallel(said: dict[str, list[str]]) -> None:
    sizes = {name: len(texts) for name, texts in said.items()}
    if len(sizes) < 2:  # noqa: PLR2004
        raise InputError(Problem("--parallel", "needs two files or more", "give the translations"))
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise InputError(Problem("--parallel", f"the files differ in lines: {shown}"))


app.command("align")(align)
