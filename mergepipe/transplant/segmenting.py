"""Bytes of text -> the ids of a vocabulary that spell them, with nothing before or between.

Tokenizers put a space in front of a text, or take its start for that of a word; a token from the
middle of a word then gets a spelling that is not its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mergepipe.tokenizer.encoding import encoder
from mergepipe.tokenizer.vocabulary import Vocabulary

__all__ = ["segmenter", "spelled_by_others"]

_BREAK = "\n"


def segmenter(vocabulary: Vocabulary) -> Callable[[bytes], Sequence[int]]:
    """Give what spells bytes by a vocabulary, without special and unknown tokens.

    Whole text is split by the tokenizer, without the space that it puts in front. What it cannot
    spell so, and parts of characters, are spelled by the longest tokens from the left; empty where
    those do not reach.
    """
    return _Segmenter(vocabulary).segment


def spelled_by_others(vocabulary: Vocabulary, number: int, longest: int) -> list[int]:
    """Spell a token by the longest other tokens from the left, of `longest` bytes at most.

    Empty where they do not reach.
    """
    raw, found, at = vocabulary.tokens[number].bytes, list[int](), 0
    while at < len(raw):
        ends = range(min(at + longest, len(raw)), at, -1)
        known = (vocabulary.by_bytes.get(raw[at:end], ()) for end in ends)
        end, piece = next(
            (
                (end, one)
                for end, ids in zip(ends, known, strict=True)
                for one in ids
                if one != number
            ),
            (0, -1),
        )
        if not end:
            return []
        found.append(piece)
        at = end
    return found


class _Segmenter:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.encoder = vocabulary, encoder(vocabulary)
        ordinary = [one for one in vocabulary.tokens.values() if one.kind != "special"]
        self.longest = max((len(one.bytes) for one in ordinary), default=0)

    def segment(self, raw: bytes) -> Sequence[int]:
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return self._greedy(raw)
        ids = self._encode(text)
        if ids is not None and self._bytes(ids) != b" " + raw:
            # A normalizer may have changed the text: then no spelling is exact.
            exact = self._bytes(ids) == raw
            return ids if exact or self.vocabulary.is_lossy else self._greedy(raw) or ids
        return self._after_break(text, raw) or self._greedy(raw) or ids or ()

    def _encode(self, text: str) -> list[int] | None:
        """Give the ordinary tokens of a text; None if some of it has none."""
        ids = self.encoder.encode(text, add_special_tokens=False).ids
        tokens = [self.vocabulary.tokens[number] for number in ids]
        unknown = self.vocabulary.unknown
        known = all(one.kind != "special" and one.id != unknown for one in tokens)
        return ids if known and ids else None

    def _after_break(self, text: str, raw: bytes) -> list[int]:
        """Split the text behind a line break, which takes the space in front."""
        ids = self._encode(_BREAK + text) or []
        for at in range(1, len(ids) + 1):
            if self._bytes(ids[at:]) == raw:
                return ids[at:]
        return []

    def _greedy(self, raw: bytes) -> list[int]:
        found, at = [], 0
        while at < len(raw):
            sizes = range(min(self.longest, len(raw) - at), 0, -1)
            size = next((n for n in sizes if raw[at : at + n] in self.vocabulary.by_bytes), 0)
            if not size:
                return []
            found.append(self.vocabulary.by_bytes[raw[at : at + size]][0])
            at += size
        return found

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.vocabulary.tokens[number].bytes for number in ids)
