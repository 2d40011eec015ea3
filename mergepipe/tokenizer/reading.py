"""A model's folder -> its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergepipe.tokenizer.converting import CONVERTERS
from mergepipe.tokenizer.family import byte_fallback, encoded, family_of, surface_bytes
from mergepipe.tokenizer.faults import fault, place, stored_json
from mergepipe.tokenizer.normalizing import is_lossy
from mergepipe.tokenizer.roles import read_roles
from mergepipe.tokenizer.vocabulary import Kind, Token, Vocabulary

__all__ = [
    "Entries",
    "read_entries",
    "read_vocabulary",
    "tokenizer_file",
    "vocabulary_of",
    "with_settings_of",
]

_FILE = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_GET = "fetch its tokenizer too: nothing else tells what its rows stand for"


@dataclass(frozen=True, slots=True)
class Entries:
    """What the files of a tokenizer say, before it is asked what its tokens stand for."""

    label: str
    folder: Path
    stored: Mapping[str, Any]
    settings: Mapping[str, Any]
    ids: Mapping[str, int]
    added: Mapping[str, bool]  # added token -> whether it is special
    roles: Mapping[str, int]


def read_entries(folder: Path, label: str) -> Entries:
    """Read the tokenizer of a model's folder; see `read_vocabulary`, which raises the same."""
    file = tokenizer_file(folder)
    if file is None:
        known = ", ".join((_FILE, *CONVERTERS))
        raise fault(place(folder, label), f"has no tokenizer: none of {known}", _GET)
    where = place(folder, label, file.name)
    settings = _object(folder, label, _SETTINGS)
    if file.name == _FILE:
        stored = stored_json(folder, label, _FILE)
    else:
        stored = next(CONVERTERS[one] for one in CONVERTERS if file.match(one))(file, where)
    ids, added = _entries(stored, where)
    roles = read_roles(folder, label, settings, ids)
    return Entries(label, folder, stored, settings, ids, added, roles)


def with_settings_of(entries: Entries, folder: Path, label: str) -> Entries:
    """Give the same tokens with the settings and roles of another model's folder."""
    settings = _object(folder, label, _SETTINGS)
    roles = read_roles(folder, label, settings, entries.ids)
    return replace(entries, label=label, folder=folder, settings=settings, roles=roles)


def read_vocabulary(folder: Path, label: str) -> Vocabulary:
    """Read the tokenizer of a model's folder; no code in it is run, no template rendered.

    `tokenizer.json` is read as it is. Where there is none, `tekken.json`, a tiktoken file
    (`*.tiktoken`, `tokenizer.model`), a SentencePiece model (`tokenizer.model`, `spiece.model`,
    `*.spm`), or `vocab.json` with `merges.txt` is turned into one.

    Raises
    ------
    InputError
        if there is none of these, or one is broken: not JSON, no vocabulary, two tokens with one
        id, an added token whose id the vocabulary gives another string.

    """
    return vocabulary_of(read_entries(folder, label))


def vocabulary_of(entries: Entries) -> Vocabulary:
    """Tell what each token stands for."""
    found = {token.id: token for token in _tokens(entries)}
    return Vocabulary(
        label=entries.label,
        folder=entries.folder,
        family=family_of(entries.stored),
        model=str(entries.stored["model"].get("type")),
        tokens={number: found[number] for number in sorted(found)},
        roles=entries.roles,
        is_lossy=is_lossy(entries.stored),
        stored=entries.stored,
        settings=entries.settings,
    )


def tokenizer_file(folder: Path) -> Path | None:
    """Find the file that holds the vocabulary of a model's folder."""
    for pattern in (_FILE, *CONVERTERS):
        found = sorted(one for one in folder.glob(pattern) if one.is_file())
        if found:
            return found[0]
    return None


def _object(folder: Path, label: str, file: str) -> Mapping[str, Any]:
    if not (folder / file).exists():
        return {}
    found = stored_json(folder, label, file)
    if not isinstance(found, dict):
        raise fault(place(folder, label, file), "not a JSON object")
    return found


def _entries(stored: Any, where: str) -> tuple[dict[str, int], dict[str, bool]]:
    """Give the ids of all tokens, and of added ones whether they are special."""
    model = stored.get("model") if isinstance(stored, dict) else None
    listed = model.get("vocab") if isinstance(model, dict) else None
    if listed is None or not _is_vocabulary(listed):
        raise fault(where, "holds no vocabulary (model.vocab)")
    # Unigram lists [token, score] in the order of ids; all other kinds map tokens to ids.
    pairs = (
        listed.items() if isinstance(listed, dict) else ((x[0], n) for n, x in enumerate(listed))
    )
    ids: dict[str, int] = dict(pairs)
    added = stored.get("added_tokens") or []
    if not isinstance(added, list) or not all(map(_is_added, added)):
        raise fault(where, "added_tokens is no list of objects with `content` and `id`")
    owners = {number: token for token, number in ids.items()}
    _check_ids(ids, owners, where)
    for one in added:
        token, number = one["content"], one["id"]
        if ids.setdefault(token, number) != number:
            what = f"added token {token} has id {number}, but model.vocab gives it {ids[token]}"
            raise fault(where, what)
        if owners.setdefault(number, token) != token:
            raise fault(where, f"two tokens share id {number}: {owners[number]} and {token}")
    return ids, {one["content"]: one.get("special") is True for one in added}


def _is_vocabulary(listed: Any) -> bool:
    if isinstance(listed, dict):
        return all(type(number) is int and number >= 0 for number in listed.values())
    return isinstance(listed, list) and all(
        isinstance(one, list) and len(one) > 1 and isinstance(one[0], str) for one in listed
    )


def _is_added(one: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("content"), str):
        return False
    number = one.get("id")
    return type(number) is int and number >= 0


def _check_ids(ids: Mapping[str, int], owners: Mapping[int, str], where: str) -> None:
    if len(owners) < len(ids):
        first = next(token for token, number in ids.items() if owners[number] != token)
        number = ids[first]
        raise fault(where, f"two tokens share id {number}: {first} and {owners[number]}")


def _tokens(entries: Entries) -> Iterator[Token]:
    family = family_of(entries.stored)
    prefix = entries.stored["model"].get("continuing_subword_prefix")
    prefix = prefix if isinstance(prefix, str) else "##"
    has_fallbacks = family == "metaspace"
    for text, number in entries.ids.items():
        special = entries.added.get(text)
        if special:
            yield Token(number, text, "special", encoded(text), is_added=True)
            continue
        is_byte = has_fallbacks and byte_fallback(text, family) is not None
        kind: Kind = "byte" if is_byte else "piece"
        surface = surface_bytes(text, family, prefix)
        yield Token(number, text, kind, surface, is_added=special is not None)
