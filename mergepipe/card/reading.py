"""What a model's folder says of itself: licence, base models, languages, data.

A model card's front matter comes first, then a licence file, then the configuration. All of it was
written by others: it is bounded in size, and only plain short words are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from mergepipe.card.licences import MISSING, licence_id
from mergepipe.errors import InputError, has_secret, printable
from mergepipe.manifest import CARD_FILE
from mergepipe.recipe.document import read_text

__all__ = ["front_matter", "said_of"]

_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt")
_MOST_CARD_BYTES = 1_000_000
_MOST_LICENCE_BYTES = 16_000
_MOST_WORDS = 50
_MOST_LETTERS = 200
# Phrases of licence files, in lower case without commas. The one that comes first in the file
# counts: behind it may stand the licences of what is bundled.
_PHRASES = (
    ("llama 4 community license", "llama4"),
    ("llama 3.3 community license", "llama3.3"),
    ("llama 3.2 community license", "llama3.2"),
    ("llama 3.1 community license", "llama3.1"),
    ("meta llama 3 community license", "llama3"),
    ("llama 2 community license", "llama2"),
    ("gemma terms of use", "gemma"),
    ("attribution-noncommercial-noderivatives 4.0", "cc-by-nc-nd-4.0"),
    ("attribution-noncommercial-sharealike 4.0", "cc-by-nc-sa-4.0"),
    ("attribution-noncommercial 4.0", "cc-by-nc-4.0"),
    ("attribution-noderivatives 4.0", "cc-by-nd-4.0"),
    ("attribution-sharealike 4.0", "cc-by-sa-4.0"),
    ("attribution 4.0 international", "cc-by-4.0"),
    ("cc0 1.0 universal", "cc0-1.0"),
    ("gnu affero general public license version 3", "agpl-3.0"),
    ("gnu lesser general public license version 3", "lgpl-3.0"),
    ("gnu general public license version 3", "gpl-3.0"),
    ("gnu general public license version 2", "gpl-2.0"),
    ("mozilla public license version 2.0", "mpl-2.0"),
    ("apache license version 2.0", "apache-2.0"),
    ("permission is hereby granted free of charge to any person obtaining a copy", "mit"),
    ("redistributions in binary form must reproduce.{,400}neither the name", "bsd-3-clause"),
    ("redistributions in binary form must reproduce", "bsd-2-clause"),
)


def said_of(folder: Path) -> dict[str, Any]:
    """Give what a folder says of its model, as JSON has it; `license` is always there.

    `license_from` names the file that states the licence. Lists are of plain words.
    """
    card = front_matter(_head(folder / CARD_FILE, _MOST_CARD_BYTES))
    found: dict[str, Any] = dict(_licence(folder, card))
    for name in ("base_model", "language", "datasets"):
        if words := _words(card.get(name)):
            found[name] = words
    for name in ("license_name", "license_link", "pipeline_tag", "library_name"):
        if words := _words(card.get(name)):
            found[name] = words[0]
    return found


def _licence(folder: Path, card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for text, file in (
        (_one(card.get("license")), CARD_FILE),
        *((_by_text(folder / name), name) for name in _LICENCE_FILES),
        (_one(_config(folder).get("license")), "config.json"),
    ):
        if text:
            licence = licence_id(text)
            named = licence_id(_one(card.get("license_name")))
            # `other` is what the hub calls a licence that it has no id for.
            is_named = file == CARD_FILE and licence == "other" and named != "other"
            yield "license", named if is_named else licence
            yield "license_from", file
            return
    yield "license", MISSING


def front_matter(text: str) -> Mapping[str, Any]:
    """Give the metadata of a model card; {} where there is none, or it is not YAML."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}
    try:
        data, _, _ = read_text(match[1], CARD_FILE)
    except InputError:
        return {}
    return data if isinstance(data, dict) else {}


def _head(file: Path, most: int) -> str:
    """Give the beginning of a text file; empty where it cannot be read."""
    try:
        with file.open("rb") as stream:
            return stream.read(most).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _by_text(file: Path) -> str:
    """Tell a licence by the words of its file; `other` for one that is not known."""
    text = " ".join(_head(file, _MOST_LICENCE_BYTES).lower().replace(",", " ").split())
    found = [
        (match.start(), licence)
        for phrase, licence in _PHRASES
        if (match := re.search(phrase, text))
    ]
    return min(found, key=itemgetter(0))[1] if found else "other" if text else ""


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(_head(folder / "config.json", _MOST_CARD_BYTES))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _one(value: Any) -> str:
    words = _words(value)
    return words[0] if words else ""


def _words(value: Any) -> list[str]:
    """Give the plain words of a text or a list of them."""
    entries = value if isinstance(value, list) else [value]
    texts = [one.strip() for one in entries if isinstance(one, str)]
    kept = [
        one
        for one in texts
        if one and len(one) <= _MOST_LETTERS and printable(one) == one and not has_secret(one)
    ]
    return list(dict.fromkeys(kept))[:_MOST_WORDS]
