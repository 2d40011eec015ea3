"""`mergepipe tokens align`: what the tokens of one tokenizer are in another, on a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mergepipe.cli.options import Json
from mergepipe.errors import EnvironmentFault, Problem, printable

if TYPE_CHECKING:
    from mergepipe.tokenizer import Token, Vocabulary
    from mergepipe.tokenizer.sequences import Alignment

__all__ = ["align"]

_SHOWN = 40  # groups of each text on a terminal

Texts = Sequence[tuple[Sequence["Token"], Sequence["Token"]]]


def align(
    source: Annotated[str, typer.Argument(help="A model's folder, or a tokenizer's.")],
    pivot: Annotated[str, typer.Argument(help="The other one's.")],
    texts: Annotated[
        list[Path], typer.Argument(help='Text files, or JSON Lines with {"text": ...}.')
    ],
    save: Annotated[
        Path | None,
        typer.Option("--map", help="Write which token of PIVOT each of SOURCE is, as TSV."),
    ] = None,
    by: Annotated[
        Literal["spelling", "statistics"],
        typer.Option(help="How `--map` decides: least edit distance, or what was aligned."),
    ] = "statistics",
    *,
    as_json: Json = False,
) -> None:
    """Align two tokenizations of texts by their bytes, and map one vocabulary to the other."""
    from mergepipe.cli.console import results
    from mergepipe.cli.tokens import read_both
    from mergepipe.tokenizer.encoding import encode_all
    from mergepipe.tokenizer.sequences import align_tokens
    from mergepipe.transplant.texts import read_texts

    ours, theirs = read_both(source, pivot)
    read = {
        f"{file}:{number}" if number else str(file): text
        for file in texts
        for number, text in enumerate(read_texts(file))
    }
    pairs = [
        (first, second)
        for first, second in zip(
            *(encode_all(one, list(read.values())) for one in (ours, theirs)), strict=True
        )
    ]
    found = {
        name: (first, second, align_tokens(first, second))
        for name, (first, second) in zip(read, pairs, strict=True)
    }
    note = "" if save is None else _save_map(save, ours, theirs, pairs, by)
    if as_json:
        results.print_json(json.dumps([_plain(name, *one) for name, one in found.items()]))
        return
    for name, one in found.items():
        _line(printable(name))
        results.print(_table(*one))
        _line(f"{_summary(*one)}\n")
    if note:
        _line(note)


def _save_map(file: Path, source: Vocabulary, pivot: Vocabulary, pairs: Texts, by: str) -> str:
    """Write the map; say how many of the tokens it could not know."""
    from mergepipe.tokenizer.mined import map_by_spelling
    from mergepipe.tokenizer.warping import count_pairs, map_by_statistics

    if by == "spelling":
        found, note = map_by_spelling(source, pivot), ""
    else:
        counts = count_pairs(pairs)
        found, seen = map_by_statistics(counts, source, pivot), len({one for _, one in counts})
        note = f"{file}: {seen:,} of {len(source):,} tokens were seen in the texts; the others are "
        note += "unknown, or ends of text (`--by spelling` maps all)"
    lines = [
        "\t".join(map(str, (s, p, _quoted(source.tokens[s]), _quoted(pivot.tokens[p]))))
        for s, p in found.items()
    ]
    try:
        file.write_text("\n".join(["source_id\tpivot_id\tsource\tpivot", *lines]) + "\n", "utf-8")
    except OSError as error:
        raise EnvironmentFault(
            Problem(str(file), f"cannot be written: {error.strerror}")
        ) from error
    return printable(note)


def _quoted(token: Token) -> str:
    return json.dumps(token.text, ensure_ascii=True)


def _plain(
    name: str, first: Sequence[Token], second: Sequence[Token], found: Alignment
) -> Mapping[str, Any]:
    groups = [[g.start, g.stop, g.start2, g.stop2] for g in found.groups]
    return {
        "text": name,
        "tokens": [len(first), len(second)],
        "coverage": found.coverage,
        "one_to_one": _one_to_one(found),
        "groups": groups,
    }


def _one_to_one(found: Alignment) -> float:
    same = sum(g.stop - g.start == g.stop2 - g.start2 == 1 for g in found.groups)
    return same / len(found.groups) if found.groups else 0.0


def _summary(first: Sequence[Token], second: Sequence[Token], found: Alignment) -> str:
    hidden = len(found.groups) - _SHOWN
    return (
        f"{f'and {hidden:,} more; ' if hidden > 0 else ''}{len(first):,} tokens are "
        f"{len(second):,}: {len(found.groups):,} groups, {_one_to_one(found):.0%} of them one to "
        f"one, {found.coverage:.1%} of the bytes in them"
    )


def _line(text: str) -> None:
    from mergepipe.cli.console import results

    results.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(first: Sequence[Token], second: Sequence[Token], found: Alignment) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD)
    for heading in ("source", "pivot"):
        grid.add_column(heading)
    for g in found.groups[:_SHOWN]:
        sides = (first[g.start : g.stop], second[g.start2 : g.stop2])
        grid.add_row(*(Text(printable(" | ".join(_shown(t) for t in side))) for side in sides))
    return grid


def _shown(token: Token) -> str:
    """Show a token's text, with its spaces."""
    if token.kind == "special":
        return token.text
    return token.bytes.decode(errors="backslashreplace").replace(" ", "␣")
