"""A Unigram tokenizer that also knows its pieces in Latin letters.

Liu, Ma, Ye and Schütze, "TransMI: A Framework to Create Strong Baselines from Multilingual
Pretrained Language Models for Transliterated Data", COLING 2025. https://arxiv.org/abs/2405.09913
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mergepipe.errors import EnvironmentFault, InputError, Problem
from mergepipe.transplant.vectors import read_pairs

__all__ = [
    "Merge",
    "Transliterate",
    "extended",
    "sources",
    "transliterator",
    "write_extended",
]

Transliterate: TypeAlias = Callable[[str], str]
# Of several pieces with one transliteration: whose score, and whose row, it gets.
Merge: TypeAlias = Literal["max", "min", "average"]

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_MERGES: Mapping[Merge, Callable[[Sequence[float]], float]] = {
    "max": max,
    "min": min,
    "average": lambda scores: math.fsum(scores) / len(scores),
}


def transliterator(table: Path | None) -> Transliterate:
    """Give the transliteration by a table of lines `text<TAB>Latin`, longest first; else uroman's.

    What the table does not have is left as it is.

    Raises
    ------
    InputError
        naming the lines of the table that are wrong.
    EnvironmentFault
        if uroman is needed and not installed.

    """
    if table is None:
        return _uroman()
    pairs = {source: target for _, (source, target) in read_pairs(table, 2) if source}
    longest = max(map(len, pairs), default=0)

    def transliterate(text: str) -> str:
        made, start = [], 0
        while start < len(text):
            parts = (text[start : start + size] for size in range(longest, 0, -1))
            part = next((part for part in parts if part in pairs), None)
            made.append(text[start] if part is None else pairs[part])
            start += len(part or "1")
        return "".join(made)

    return transliterate


def _uroman() -> Transliterate:
    try:
        uroman = importlib.import_module("uroman")
    except ImportError as error:
        fix = "pip install 'mergepipe[transliterate]', or name a table"
        raise EnvironmentFault(Problem("", "transliteration needs uroman", fix)) from error
    romanizer = uroman.Uroman()
    return lambda text: str(romanizer.romanize_string(text))


def sources(stored: Mapping[str, Any], transliterate: Transliterate) -> dict[str, list[int]]:
    """Give, for each transliteration that differs from its pieces, the ids of these, ascending.

    Spaces stay where they are. Special tokens and byte fallbacks have no transliteration, and an
    empty one is none.

    Raises
    ------
    InputError
        if the tokenizer is not a Unigram one.

    """
    model = stored["model"]
    if model.get("type") != "Unigram":
        kind = model.get("type")
        raise InputError(Problem("transmi", f"needs a Unigram tokenizer, and this is {kind}"))
    added = {one["content"] for one in stored.get("added_tokens") or ()}
    found: dict[str, list[int]] = {}
    for number, (piece, _) in enumerate(model["vocab"]):
        if piece in added or (piece.startswith("<0x") and piece.endswith(">")):
            continue
        made = _SPACE.join(transliterate(part) if part else "" for part in piece.split(_SPACE))
        if made.strip(_SPACE) and made != piece:
            found.setdefault(made, []).append(number)
    return found


def extended(
    stored: Mapping[str, Any], transliterate: Transliterate, merge: Merge = "max"
) -> dict[str, Any]:
    """Give a `tokenizer.json` with the transliterations that it lacks as new pieces.

    They are appended, the likeliest first; old pieces keep their ids and scores. A new piece has
    the score of its source, of several the largest, the smallest or the mean.

    Raises
    ------
    InputError
        if it is not a Unigram tokenizer, or ids of added tokens leave gaps behind the pieces.

    """
    made = copy.deepcopy(dict(stored))
    vocabulary = made["model"]["vocab"]
    _settle_added(made)
    known = {piece for piece, _ in vocabulary}
    scores = [score for _, score in vocabulary]
    new: list[tuple[str, float]] = [
        (piece, _MERGES[merge]([scores[number] for number in ids]))
        for piece, ids in sources(stored, transliterate).items()
        if piece not in known
    ]
    vocabulary.extend(list(one) for one in sorted(new, key=lambda one: (-one[1], one[0])))
    return made


def write_extended(
    base: Path, out: Path, transliterate: Transliterate, merge: Merge = "max"
) -> int:
    """Write the tokenizer of the folder `base`, extended, to a new folder; give how many are new.

    Raises
    ------
    InputError
        if `out` is there already, or the tokenizer cannot be extended.

    """
    file = base / "tokenizer.json"
    if out.exists():
        raise InputError(Problem(str(out), "is there already", "name a new folder"))
    if not file.is_file():
        raise InputError(Problem(str(base), "no tokenizer.json"))
    stored = json.loads(file.read_bytes())
    made = extended(stored, transliterate, merge)
    out.mkdir(parents=True)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    text = json.dumps(made, ensure_ascii=False)
    (out / "tokenizer.json").write_text(text, encoding="utf-8")
    return len(made["model"]["vocab"]) - len(stored["model"]["vocab"])


def _settle_added(stored: dict[str, Any]) -> None:
    """Make pieces of the added tokens behind the last piece, so that they keep their ids."""
    vocabulary = stored["model"]["vocab"]
    behind = [one for one in stored.get("added_tokens") or () if one["id"] >= len(vocabulary)]
    for one in sorted(behind, key=lambda one: int(one["id"])):
        if one["id"] != len(vocabulary):
            what = f"no token has id {len(vocabulary)}, and a later one has {one['id']}"
            raise InputError(Problem("transmi", what))
        vocabulary.append([one["content"], 0.0])
