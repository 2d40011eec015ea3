"""Texts that a transplant is judged by and measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate import read_jsonl

__all__ = ["read_pieces", "read_texts", "read_translations"]

_PIECE = 2048  # characters of a text that are seen at once


def read_texts(file: Path, *, by_line: bool = False) -> list[str]:
    """Give the texts of JSON Lines with `text`; of a plain text its lines, or the whole as one.

    Raises
    ------
    InputError
        if the file cannot be read.

    """
    if not file.is_file():
        raise InputError(Problem(str(file), "there is no such file"))
    if file.suffix == ".jsonl":
        return [record["text"] for record in read_jsonl(file, {"text": str}).values()]
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(file), f"cannot be read as UTF-8 text: {error}")) from error
    return text.splitlines() if by_line else [text]


def read_translations(files: Mapping[str, Path], where: str) -> dict[str, list[str]]:
    """Give by language the lines of files that say the same, line by line.

    Raises
    ------
    InputError
        if a file cannot be read, there is but one, or they are not as long as each other.

    """
    said = {language: read_texts(file, by_line=True) for language, file in files.items()}
    if len(said) < 2:  # noqa: PLR2004
        raise InputError(Problem(where, "needs two files or more", "give the translations"))
    sizes = {language: len(texts) for language, texts in said.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{language} has {size}" for language, size in sizes.items())
        raise InputError(Problem(where, f"the files differ in lines: {shown}"))
    return said


def read_pieces(file: Path, most_bytes: int) -> Iterator[str]:
    """Give short pieces of a file's texts, as many as its first bytes hold."""
    for text in read_texts(file):
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE].encode()[:most_bytes].decode(errors="ignore")
            most_bytes -= len(piece.encode())
            if not piece:
                return
            yield piece
