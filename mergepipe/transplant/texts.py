"""Texts that a transplant is judged by and measured on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate import read_jsonl

__all__ = ["read_pieces", "read_texts"]

_PIECE = 2048  # characters of a text that are seen at once


def read_texts(file: Path) -> list[str]:
    """Give the texts of JSON Lines with `text`, or a plain text as one.

    Raises
    ------
    InputError
        if the file cannot be read.

    """
    if file.suffix == ".jsonl":
        return [record["text"] for record in read_jsonl(file, {"text": str}).values()]
    try:
        return [file.read_text(encoding="utf-8-sig")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(file), f"cannot be read as UTF-8 text: {error}")) from error


def read_pieces(file: Path, most_bytes: int) -> Iterator[str]:
    """Give short pieces of a file's texts, as many as its first bytes hold."""
    for text in read_texts(file):
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE].encode()[:most_bytes].decode(errors="ignore")
            most_bytes -= len(piece.encode())
            if not piece:
                return
            yield piece
