"""How a tokenizer spells text in its vocabulary, and the bytes that an entry stands for.

The family is read from `tokenizer.json`, never from a class name: loaders give most checkpoints
one generic class, and may rebuild a tokenizer by its class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeAlias

__all__ = [
    "Family",
    "byte_fallback",
    "encoded",
    "family_of",
    "nodes_of",
    "spelled",
    "surface_bytes",
]

Family: TypeAlias = Literal["bytelevel", "metaspace", "wordpiece", "other"]

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_TELLING = 100  # entries that must show a mark before it tells the family


def family_of(stored: Mapping[str, Any]) -> Family:
    """Tell the family of a parsed `tokenizer.json`."""
    nodes = list(nodes_of([stored.get(part) for part in ("pre_tokenizer", "decoder")]))
    if any(node.get("type") == "ByteLevel" for node in nodes):
        return "bytelevel"
    model = stored["model"]
    marks = [*nodes, *nodes_of([stored.get("normalizer")])]
    if model.get("byte_fallback") is True or any(map(_is_metaspace, marks)):
        return "metaspace"
    if model.get("type") == "WordPiece":
        return "wordpiece"
    entries = _entries(model)
    if sum(text.startswith(_SPACE) for text in entries) >= _TELLING:
        return "metaspace"
    if sum(text.startswith("##") for text in entries) >= _TELLING:
        return "wordpiece"
    return "other"


def surface_bytes(text: str, family: Family, prefix: str = "##") -> bytes:
    r"""Give the bytes of text that an ordinary entry of a vocabulary stands for.

    `prefix` marks entries that continue a word, in WordPiece. An entry of a byte-level vocabulary
    with characters that stand for no byte was added as it is, and so are its bytes.

    >>> surface_bytes("Ġthe", "bytelevel"), surface_bytes("▁the", "metaspace")
    (b' the', b' the')
    >>> surface_bytes("<0x0A>", "metaspace"), surface_bytes("Ċ", "bytelevel")
    (b'\n', b'\n')
    >>> surface_bytes("the", "wordpiece"), surface_bytes("##s", "wordpiece")
    (b' the', b's')
    """
    if family == "bytelevel":
        try:
            return text.translate(_byte_characters()).encode("latin-1")
        except UnicodeEncodeError:
            return encoded(text)
    if family == "metaspace":
        byte = byte_fallback(text, family)
        return encoded(text.replace(_SPACE, " ")) if byte is None else bytes([byte])
    if family == "wordpiece":
        continues = bool(prefix) and text.startswith(prefix)
        return encoded(text.removeprefix(prefix) if continues else f" {text}")
    return encoded(text)


def encoded(text: str) -> bytes:
    """Give the UTF-8 of text, also of halves of characters, which broken files hold."""
    return text.encode(errors="surrogatepass")


def byte_fallback(text: str, family: Family) -> int | None:
    """Give the byte that an entry such as `<0x0A>` stands for; None for other entries."""
    found = _FALLBACK.fullmatch(text) if family == "metaspace" else None
    return int(found[1], 16) if found else None


def spelled(raw: bytes) -> str:
    """Spell bytes as byte-level vocabularies do.

    >>> spelled(b" the")
    'Ġthe'
    """
    return raw.decode("latin-1").translate(_marks())


@cache
def _marks() -> Mapping[int, int]:
    """GPT-2's characters for bytes that are not printable ones of Latin-1: U+0100 and on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return {byte: 256 + n for n, byte in enumerate(sorted(set(range(256)) - plain))}


@cache
def _byte_characters() -> Mapping[int, int]:
    """Undo `_marks`; a character that stands for no byte becomes one that Latin-1 lacks."""
    return dict.fromkeys(_marks(), 65535) | {mark: byte for byte, mark in _marks().items()}


def _is_metaspace(node: Mapping[str, Any]) -> bool:
    """Tell whether a node writes spaces as SentencePiece does, or reads them so."""
    kind, pattern = node.get("type"), node.get("pattern")
    found = pattern.get("String") if isinstance(pattern, dict) else None
    return (
        kind == "Metaspace"
        or (kind == "Replace" and {found, node.get("content")} == {" ", _SPACE})
        or (kind == "Prepend" and node.get("prepend") == _SPACE)
    )


def nodes_of(trees: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """Give every node of nested sequences of steps, in their order."""
    waiting = list(trees)[::-1]
    while waiting:
        tree = waiting.pop()
        if isinstance(tree, Mapping):
            yield tree
            waiting += list(tree.values())[::-1]
        elif isinstance(tree, list):
            waiting += tree[::-1]


def _entries(model: Mapping[str, Any]) -> Iterator[str]:
    listed = model["vocab"]
    return iter(listed) if isinstance(listed, dict) else (str(one[0]) for one in listed)
