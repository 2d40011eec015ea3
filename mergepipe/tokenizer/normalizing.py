"""What a tokenizer does to text before it splits it, from the steps in its `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergepipe.tokenizer.family import nodes_of

__all__ = ["adds_space", "changes_text", "is_lossy"]

_SPACES = {" ", "\N{LOWER ONE EIGHTH BLOCK}"}
# Canonical forms spell the same text in another way; all else loses something of it.
_CANONICAL = {"NFC", "NFD", "Nmt"}
_LOSSY = {"Lowercase", "StripAccents", "NFKC", "NFKD", "Strip", "BertNormalizer"}
_DROPS_SPACES = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}


def is_lossy(stored: Mapping[str, Any]) -> bool:
    """Tell whether words or spaces of a text are lost: case, accents, compatibility forms, runs.

    Unicode's canonical forms (NFC) do not count: `changes_text` tells of them.
    """
    steps = nodes_of([stored.get("normalizer"), stored.get("pre_tokenizer")])
    return any(_loses(step) for step in steps)


def changes_text(stored: Mapping[str, Any]) -> bool:
    """Tell whether some text is not given back byte by byte, apart from a space in front."""
    steps = nodes_of([stored.get("normalizer")])
    return is_lossy(stored) or any(step.get("type") in _CANONICAL for step in steps)


def adds_space(stored: Mapping[str, Any]) -> bool:
    """Tell whether a space is put in front of a text, which its first token then has."""
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        or (step.get("type") == "ByteLevel" and step.get("add_prefix_space") is True)
        for step in nodes_of([stored.get("normalizer"), stored.get("pre_tokenizer")])
    )


def _loses(step: Mapping[str, Any]) -> bool:
    kind = step.get("type")
    if kind == "BertNormalizer":
        return any(step.get(key) is not False for key in ("clean_text", "lowercase"))
    if kind == "Precompiled":
        return bool(step.get("precompiled_charsmap"))
    if kind == "Replace":
        pattern = step.get("pattern")
        plain = pattern.get("String") if isinstance(pattern, Mapping) else None
        return not (plain in _SPACES and step.get("content") in _SPACES)
    # Inverted, a pattern says what is kept, and those in use leave nothing out.
    drops = step.get("behavior") == "Removed" and step.get("invert") is not True
    return kind in _LOSSY or kind in _DROPS_SPACES or kind == "CharDelimiterSplit" or drops
