"""A whole card, and whether one that is there is still as it was written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergepipe.card.body import body
from mergepipe.card.contents import Contents, read_contents
from mergepipe.card.licences import Choice, choose, conflicts, licence_id
from mergepipe.card.metadata import front_matter, metadata
from mergepipe.digest import digest_of
from mergepipe.errors import InputError, Problem

__all__ = ["Card", "is_ours", "make_card"]

_MARK = re.compile(r"^<!-- mergepipe card ([0-9a-f]{64}): [a-z ,;]*-->$", re.MULTILINE)
_BLANK = "0" * 64
_SAID = "once a letter of this file is changed, it is yours, and not overwritten"


@dataclass(frozen=True, slots=True)
class Card:
    """The text of README.md, and what of the inputs' licences should be looked at first."""

    text: str
    licences: Mapping[str, str]  # model -> licence
    conflicts: tuple[str, ...]


def make_card(folder: Path, licence: str | None = None) -> Card:
    """Make the model card of a result; nothing is written.

    `licence` is the id of the licence that the result is given, whatever its inputs have.

    Raises
    ------
    InputError
        if the folder is not what a run wrote, or `licence` is no id.

    """
    contents = read_contents(folder)
    licences = _licences(contents)
    found = tuple(conflicts(licences))
    chosen = choose(licences) if licence is None else _given(licence)
    data, below = front_matter(metadata(contents, chosen)), body(contents, chosen, found)
    blank = _marked(data, _BLANK, below)
    return Card(_marked(data, digest_of(blank.encode()), below), licences, found)


def _marked(data: str, digest: str, below: str) -> str:
    return f"---\n{data}---\n\n<!-- mergepipe card {digest}: {_SAID} -->\n\n{below}"


def _licences(contents: Contents) -> dict[str, str]:
    found = {}
    for one in contents.inputs:
        for at, licence in enumerate(one.licences):
            found[one.label if at == 0 else f"{one.label} (adapter)"] = licence
    return found


def _given(licence: str) -> Choice:
    known = licence_id(licence)
    if known == "other" and licence.strip().lower() != "other":
        fix = "give one of SPDX or of the hub, such as apache-2.0"
        raise InputError(Problem("--license", f"'{licence}' is no licence's id", fix))
    return Choice(known, "stated by whoever published it, not derived from the inputs")


def is_ours(text: str) -> bool:
    """Tell whether a README.md is a card that nobody edited since it was written."""
    found = _MARK.search(text)
    if found is None:
        return False
    blank = f"{text[: found.start(1)]}{_BLANK}{text[found.end(1) :]}"
    return digest_of(blank.encode()) == found[1]
