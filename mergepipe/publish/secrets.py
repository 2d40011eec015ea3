"""What must not leave the machine: credentials, and the folders of someone's home.

A finding is named by file and line, and never shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mergepipe.errors import Problem, has_secret
from mergepipe.publish.item import Item

__all__ = ["find_secrets"]

_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\bgithub_pat_[A-Za-z0-9_]{20,}"
    r"|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bnpm_[A-Za-z0-9]{36}"
    r"|\bpypi-[A-Za-z0-9_-]{50,}"
    r"|\bAIza[A-Za-z0-9_-]{35}"
    r"|\b[rs]k_live_[A-Za-z0-9]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    r"|\bAuthorization[\"']?\s*[=:]\s*[\"']?(Bearer|Basic|token)\s+[A-Za-z0-9._~+/=-]{12,}"
    r"|(?i:aws_secret_access_key)[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+=]{30,}"
    r"|[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]{1,100}:[^\s/:@\"'<>{}]{3,100}@"
)
_HOME = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\{1,2}Users\\{1,2})[^/\\\s\"'<>|*?:]+[/\\]")
_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)", re.IGNORECASE)
_LEAST_LETTERS = 12  # of a variable's value: shorter ones are found by chance
# Words of a vocabulary are what a corpus held, and templates show examples: nobody's here.
_VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "tekken.json", "added_tokens.json"),
    *(".txt", ".tiktoken", ".model", ".spm", ".jinja"),
)
_HEADER_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000


def find_secrets(
    items: Iterable[Item], environment: Mapping[str, str], *, paths: bool = True
) -> Iterator[Problem]:
    """Give a problem for each file that holds a credential, or with `paths` names a home folder.

    `environment` are variables, whose values are looked for where their name says it is a secret.
    """
    values = [
        value
        for name, value in environment.items()
        if _VARIABLE.search(name) and len(value) >= _LEAST_LETTERS and not os.path.exists(value)  # noqa: PTH110
    ]
    for item in items:
        homes = paths and not item.name.endswith(_VOCABULARIES) and not item.is_weights
        yield from _findings(item, values, homes=homes)


def _findings(item: Item, values: list[str], *, homes: bool) -> Iterator[Problem]:
    secret = home = False
    for number, line in enumerate(_lines(item), 1):
        where = f"{item.path}:{number}"
        if not secret and (
            has_secret(line) or _SHAPES.search(line) or any(value in line for value in values)
        ):
            secret = True
            what = "holds what looks like a secret token, key or password; it is not shown here"
            yield Problem(where, what, "take it out, and revoke it if it was shared")
        if homes and not home and (_HOME.search(line) or _own_home() in line):
            home = True
            what = "names a folder in someone's home; it is not shown here"
            fix = "write the path relative or with ~, or publish it with --allow-paths"
            yield Problem(where, what, fix)


def _own_home() -> str:
    """Give the home folder, as it begins the path of what is in it."""
    return f"{Path.home()}{os.sep}"


def _lines(item: Item) -> Iterator[str]:
    if item.is_weights:
        yield _header(item)
        return
    with item.path.open(encoding="utf-8", errors="replace", newline="\n") as stream:
        yield from stream


def _header(item: Item) -> str:
    """Give the header of a safetensors file, which may hold any text as metadata."""
    with item.path.open("rb") as stream:
        length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
        return stream.read(min(length, _MOST_HEADER_BYTES)).decode("utf-8", "replace")
