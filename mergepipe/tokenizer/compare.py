"""Two vocabularies held against each other by what their tokens stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from mergepipe.tokenizer.family import encoded
from mergepipe.tokenizer.matching import Match, match
from mergepipe.tokenizer.vocabulary import ROLES, Key, Token, Vocabulary

__all__ = ["Comparison", "Moved", "Relation", "compare", "is_unused"]

# What the second vocabulary is of the first: the same tokens with the same ids; the same, and one
# has ids that are set aside; the same tokens with other ids; fewer tokens; more; none of these.
Relation: TypeAlias = Literal["same", "padded", "permuted", "subset", "superset", "different"]

_UNUSED = re.compile(
    r"\W*(unused|reserved|extra|special|dummy|pad|padding|place\W?holder)"
    r"([\W_]*(special|token|id|no))*[\W_]*\d+\W*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Moved:
    """A token that both have, with another id; or an id that stands for another token."""

    id: int
    here: Token
    there: Token


@dataclass(frozen=True)
class Comparison:
    """How a vocabulary `b` differs from `a`; tokens are told apart by content, not by spelling.

    `relation` counts every token, `ordinary` only those that stand for text. `shared`, `only_a`
    and `only_b` are ids (of a, a and b); `moved` are the ids that both have for tokens that
    differ, where `renamed` are those of them that are one vocabulary's own special or added token
    on both sides, as when a fine-tune gives a reserved token a name.
    """

    a: Vocabulary
    b: Vocabulary
    relation: Relation
    ordinary: Relation
    shared: tuple[int, ...]
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]
    moved: tuple[Moved, ...]
    renamed: tuple[Moved, ...]
    roles: Mapping[str, tuple[Token | None, Token | None]]

    @property
    def differing_roles(self) -> tuple[str, ...]:
        """Roles that are not the same token with the same id on both sides."""
        return tuple(role for role, (one, other) in self.roles.items() if not _same(one, other))

    @cached_property
    def match(self) -> Match:
        """The tokens of b among a's, by every rule but the loose ones."""
        return match(self.a, self.b)

    @property
    def overlap(self) -> float:
        """Share of b's tokens that a has too, 0 to 1, by the match."""
        return len(self.match.ids) / len(self.b) if len(self.b) else 1.0


def compare(a: Vocabulary, b: Vocabulary) -> Comparison:
    """Compare two vocabularies, in time linear in their sizes."""
    ours, theirs = _keys(a, b), _keys(b, a)
    only_a = tuple(n for key, ids in ours.items() if key not in theirs for n in ids)
    only_b = tuple(n for key, ids in theirs.items() if key not in ours for n in ids)
    shared = tuple(n for key, ids in ours.items() if key in theirs for n in ids)
    differing = [
        Moved(number, token, there)
        for number, token in a.tokens.items()
        if (there := b.tokens.get(number)) is not None
        and token.key != there.key
        and token.text != there.text
    ]
    renamed = [one for one in differing if _is_renamed(one, a, b)]
    roles = {
        role: (a.tokens.get(a.roles.get(role, -1)), b.tokens.get(b.roles.get(role, -1)))
        for role in ROLES
        if role in a.roles or role in b.roles
    }
    return Comparison(
        a=a,
        b=b,
        relation=_relation(a, b, ours, theirs),
        ordinary=_relation(a, b, _ordinary(ours), _ordinary(theirs)),
        shared=tuple(sorted(shared)),
        only_a=tuple(sorted(only_a)),
        only_b=tuple(sorted(only_b)),
        moved=tuple(differing),
        renamed=tuple(renamed),
        roles=roles,
    )


def is_unused(token: Token) -> bool:
    """Tell whether an added token is only set aside: `<unused0>`, `[extra_id_5]`, and so on.

    >>> is_unused(Token(7, "<|reserved_special_token_0|>", "special", b"", is_added=True))
    True
    >>> is_unused(Token(7, "<|im_start|>", "special", b"", is_added=True))
    False
    """
    return token.is_added and _UNUSED.fullmatch(token.text) is not None


Keys: TypeAlias = Mapping[Key, tuple[int, ...]]


def _keys(one: Vocabulary, other: Vocabulary) -> Keys:
    """Give the ids of tokens by content; an added token that the other calls special is special."""
    found = dict(one.by_key)
    for text in other.special.keys() - one.special.keys():
        number = one.ids.get(text)
        if number is not None and one.tokens[number].is_added:
            key = one.tokens[number].key
            found[key] = tuple(n for n in found[key] if n != number)
            if not found[key]:
                del found[key]
            found["special", encoded(text)] = (number,)
    return found


def _ordinary(keys: Keys) -> Keys:
    return {key: ids for key, ids in keys.items() if key[0] != "special"}


def _relation(a: Vocabulary, b: Vocabulary, ours: Keys, theirs: Keys) -> Relation:
    if ours == theirs:
        return "same"
    extra_a = [n for key in ours.keys() - theirs.keys() for n in ours[key]]
    extra_b = [n for key in theirs.keys() - ours.keys() for n in theirs[key]]
    in_place = all(ids == theirs.get(key, ids) for key, ids in ours.items())
    if not extra_a and not extra_b:
        return "permuted"
    unused = [is_unused(a.tokens[n]) for n in extra_a] + [is_unused(b.tokens[n]) for n in extra_b]
    if in_place and all(unused) and not (extra_a and extra_b):
        return "padded"
    if not extra_a:
        return "superset"
    return "subset" if not extra_b else "different"


def _is_renamed(one: Moved, a: Vocabulary, b: Vocabulary) -> bool:
    is_added = one.here.is_added and one.there.is_added
    return is_added and one.here.text not in b.ids and one.there.text not in a.ids


def _same(one: Token | None, other: Token | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.id, one.key) == (other.id, other.key)
