"""Whether the models' vocabularies agree: rows of embeddings are averaged by id, not by word."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mergepipe.checkpoint import Checkpoint
from mergepipe.errors import Problems, printable

__all__ = ["check_tokenizers"]

_FILE = "tokenizer.json"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    kind: str  # BPE, WordPiece, Unigram, WordLevel
    ids: Mapping[str, int]
    tokens: Mapping[int, str]
    added: frozenset[str]


def check_tokenizers(
    donor: Checkpoint, mixed: Collection[Checkpoint], rows: int, problems: Problems
) -> None:
    """Hold the vocabularies of `mixed` against that of `donor`, with which they are averaged.

    `rows` is how many rows the embedding has. Files with the same bytes are not parsed, and a
    model without tokenizer.json is passed over.
    """
    ours, known = _digest(donor), None
    for model in mixed:
        if ours is not None and _digest(model) not in {None, ours}:
            known = known or _read(donor, rows, problems)
            other = _read(model, rows, problems)
            if known is not None and other is not None:
                _compare(donor.label, known, model, other, problems)


def _digest(model: Checkpoint) -> bytes | None:
    try:
        return hashlib.blake2b((model.folder / _FILE).read_bytes()).digest()
    except OSError:
        return None


def _place(model: Checkpoint) -> str:
    path = f"{model.folder.name}/{_FILE}"
    return path if model.folder.name == model.label else f"{model.label} ({path})"


def _read(model: Checkpoint, rows: int, problems: Problems) -> _Vocabulary | None:
    """Read the vocabulary of a model, or say what is wrong with its file."""
    try:
        return _vocabulary(json.loads((model.folder / _FILE).read_bytes()), rows)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        fault = f"not valid JSON: {error}"
    except ValueError as error:
        fault = str(error)
    except (TypeError, KeyError, AttributeError, IndexError):
        fault = "holds no vocabulary (model.vocab)"
    problems.add(_place(model), fault, "fetch the tokenizer of this model again")
    return None


def _vocabulary(stored: Any, rows: int) -> _Vocabulary:
    """Take the ids from a parsed tokenizer.json, if an embedding of `rows` rows can use them."""
    model = stored["model"]
    listed = model["vocab"]
    # Unigram lists [token, score] in the order of ids; all other kinds map tokens to ids.
    base = listed if isinstance(listed, dict) else {one[0]: n for n, one in enumerate(listed)}
    # Added tokens have the last word.
    added = {one["content"]: one["id"] for one in stored.get("added_tokens") or ()}
    ids = {**base, **added}
    tokens = {number: token for token, number in ids.items()}
    if not all(type(number) is int for number in tokens):
        raise TypeError
    twice = next((token for token, number in ids.items() if tokens[number] != token), None)
    if twice is not None:
        number = ids[twice]
        raise ValueError(f"two tokens share id {number}: {twice} and {tokens[number]}")
    count, last = len(tokens), max(tokens, default=0)
    # A few tokens more than rows are met with: Gemma 3's text models lack the image token's row.
    if last >= rows and (last >= count or count > rows + _SHOWN):
        raise ValueError(f"{count} tokens up to id {last}, but the embedding has {rows} rows")
    return _Vocabulary(str(model.get("type")), ids, tokens, frozenset(added))


def _compare(
    label: str, ours: _Vocabulary, model: Checkpoint, theirs: _Vocabulary, problems: Problems
) -> None:
    """Refuse moved tokens; warn of what only one of the two vocabularies has."""
    here, there = ours.tokens, theirs.tokens
    moved = [n for n, token in here.items() if there.get(n, token) != token]
    # A reserved token that a fine-tune gave a name still has its row to itself.
    ours_only, theirs_only = ours.added - theirs.ids.keys(), theirs.added - ours.ids.keys()
    renamed = [n for n in moved if here[n] in ours_only and there[n] in theirs_only]
    if len(moved) > len(renamed):
        first = ", ".join(f"{n} is {here[n]}, here {there[n]}" for n in moved[:_SHOWN])
        problems.add(
            _place(model),
            f"tokenizer differs from {label}'s: {len(moved)} of {len(here)} tokens have another "
            f"id ({printable(first, 200)}); a row-by-row average would mix words",
            f"align them first, or `take` the embedding and the output head from {label}",
        )
        return
    for what, tokens in (
        (f"tokens have another name than in {label}", [there[n] for n in renamed]),
        (f"tokens that {label} lacks", [there[n] for n in there.keys() - here.keys()]),
        (f"tokens of {label} are missing", [here[n] for n in here.keys() - there.keys()]),
    ):
        if tokens:
            shown = ", ".join(sorted(tokens)[:_SHOWN])
            problems.warn(_place(model), f"{len(tokens)} {what}: {printable(shown, 200)}")
    if ours.kind != theirs.kind:
        problems.warn(_place(model), f"is a {theirs.kind} tokenizer, {label}'s is {ours.kind}")
