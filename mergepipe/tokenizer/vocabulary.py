"""A vocabulary: what every id stands for, whatever tokenizer it belongs to.

Two tokens are the same if they stand for the same bytes of text, or are special tokens of the
same role or content. How a vocabulary spells them does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mergepipe.tokenizer.family import Family

__all__ = ["ROLES", "Key", "Kind", "Token", "Vocabulary"]

# In order of importance: where one token has several roles, the first is the one that counts.
ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")

Kind: TypeAlias = Literal["piece", "byte", "special"]
Key: TypeAlias = tuple[Kind, bytes]


@dataclass(frozen=True, slots=True)
class Token:
    """One entry: `text` as the vocabulary spells it, `bytes` as text has it.

    A `byte` token is a byte fallback (`<0x0A>`); a `special` one stands for no text, and its
    `bytes` are those of its content.
    """

    id: int
    text: str
    kind: Kind
    bytes: bytes
    is_added: bool

    @property
    def key(self) -> Key:
        """What makes two tokens of two vocabularies the same."""
        return (self.kind, self.bytes)


@dataclass(frozen=True)
class Vocabulary:
    """All tokens of a tokenizer by id, ascending; ids may have gaps.

    `stored` is the parsed `tokenizer.json` (made from another format where there is none),
    `settings` the parsed `tokenizer_config.json`. `is_lossy` says that the tokenizer changes
    text before it splits it (lower-casing, NFKC), so that the bytes of a text are not recovered.
    """

    label: str
    folder: Path
    family: Family
    model: str  # BPE, Unigram, WordPiece, WordLevel
    tokens: Mapping[int, Token]
    roles: Mapping[str, int]
    is_lossy: bool
    stored: Mapping[str, Any] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def rows(self) -> int:
        """Rows that an embedding needs at least."""
        return max(self.tokens, default=-1) + 1

    @property
    def unknown(self) -> int | None:
        """Id of the token that stands for what the vocabulary cannot spell, if it has one.

        The role `unk` is only a name: GPT-2's is never given.
        """
        model = self.stored.get("model", {})
        number = model.get("unk_id", self.ids.get(str(model.get("unk_token"))))
        return number if type(number) is int and number in self.tokens else None

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Id of each token, as the vocabulary spells it."""
        return {token.text: number for number, token in self.tokens.items()}

    @cached_property
    def by_key(self) -> Mapping[Key, tuple[int, ...]]:
        """Ids of the tokens with a key, ascending: more than one where the vocabulary repeats."""
        found: dict[Key, tuple[int, ...]] = {}
        for number, token in self.tokens.items():
            found[token.key] = (*found.get(token.key, ()), number)
        return found

    @cached_property
    def by_bytes(self) -> Mapping[bytes, tuple[int, ...]]:
        """Ids of the ordinary tokens that stand for these bytes: pieces first, then fallbacks."""
        found: dict[bytes, tuple[int, ...]] = {}
        order: tuple[Kind, ...] = ("piece", "byte")
        for kind in order:
            for number, token in self.tokens.items():
                if token.kind == kind:
                    found[token.bytes] = (*found.get(token.bytes, ()), number)
        return found

    @cached_property
    def special(self) -> Mapping[str, int]:
        """Special tokens by content."""
        return {t.text: number for number, t in self.tokens.items() if t.kind == "special"}
