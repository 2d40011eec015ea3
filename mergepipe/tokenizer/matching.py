"""Which token of one vocabulary is which of another.

A special token is the one of the same role, then that of the same content, then what the user
says. An ordinary one is the token that stands for the same bytes; a single byte may be a piece in
one vocabulary and a fallback in the other. Looser likenesses are asked for: equal but for case
and a leading space (as FOCUS, https://arxiv.org/abs/2305.14481, and OFA do), or the longest token
that it begins with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

from mergepipe.errors import InputError, Problem, did_you_mean, printable
from mergepipe.tokenizer.vocabulary import ROLES, Token, Vocabulary

__all__ = ["How", "Match", "match"]

# Why two tokens are the same, the strongest reason first.
How: TypeAlias = Literal["role", "special", "exact", "byte", "fuzzy", "prefix"]


@dataclass(frozen=True)
class Match:
    """The token of `base` that each token of `donor` is, where there is one, and why.

    Several tokens of the donor may be one of the base. Donor ids at or beyond `donor_rows` are in
    `missing` too: they have no row to be learned from.
    """

    base: Vocabulary
    donor: Vocabulary
    ids: Mapping[int, int]  # donor id -> base id, ascending
    how: Mapping[int, How]
    missing: tuple[int, ...]  # donor ids without a base token, ascending
    out_of_range: tuple[int, ...] = ()  # those of `missing` that the donor's embedding lacks

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Tokens of the donor by class, all of them named."""
        found = dict.fromkeys((*get_args(How), "missing", "out_of_range"), 0)
        for how in self.how.values():
            found[how] += 1
        found["missing"] = len(self.missing) - len(self.out_of_range)
        found["out_of_range"] = len(self.out_of_range)
        return found


def match(
    base: Vocabulary,
    donor: Vocabulary,
    *,
    base_rows: int | None = None,
    donor_rows: int | None = None,
    roles: Mapping[str, str] | None = None,
    byte: bool = True,
    fuzzy: bool = False,
    prefix: bool = False,
) -> Match:
    """Find for every token of `donor` the one of `base` that it is.

    `base_rows` and `donor_rows` are the rows of the embeddings: tokens of the base beyond its
    rows are nobody's match. `roles` maps contents of the donor's special tokens to tokens of the
    base, over what role and content say.

    Raises
    ------
    InputError
        if `roles` names a token that is not there, or has no row in the base.

    """
    finders = _Finders(base, base.rows if base_rows is None else base_rows)
    steps = [finders.exact, *[finders.byte] * byte]
    steps += [*[finders.fuzzy] * fuzzy, *[finders.prefix] * prefix]
    special = _special(finders, donor, roles or {})
    ids: dict[int, int] = {}
    how: dict[int, How] = {}
    for number, token in donor.tokens.items():
        found = special.get(number)
        if token.kind != "special" and found is None:
            found = next((one for step in steps if (one := step(token)) is not None), None)
        if found is not None:
            ids[number], how[number] = found
    missing = tuple(number for number in donor.tokens if number not in ids)
    last = donor.rows if donor_rows is None else donor_rows
    return Match(base, donor, ids, how, missing, tuple(n for n in missing if n >= last))


Found: TypeAlias = "tuple[int, How] | None"


class _Finders:
    """Ways to find a token in a vocabulary of which `rows` rows are there."""

    def __init__(self, vocabulary: Vocabulary, rows: int) -> None:
        self.vocabulary = vocabulary
        self.rows = rows

    def first(self, ids: Iterable[int]) -> int | None:
        return next((number for number in ids if number < self.rows), None)

    def exact(self, token: Token) -> Found:
        found = self.first(self.vocabulary.by_key.get(token.key, ()))
        return None if found is None else (found, "exact")

    def byte(self, token: Token) -> Found:
        if len(token.bytes) != 1:
            return None
        found = self.first(self.vocabulary.by_bytes.get(token.bytes, ()))
        return None if found is None else (found, "byte")

    def fuzzy(self, token: Token) -> Found:
        found = self._folded.get(_fold(token.bytes))
        return None if found is None else (found, "fuzzy")

    def prefix(self, token: Token) -> Found:
        for size in range(len(token.bytes) - 1, 0, -1):
            start = token.bytes[:size]
            if start.isspace():
                return None
            found = self.first(self.vocabulary.by_bytes.get(start, ()))
            if found is not None:
                return found, "prefix"
        return None

    @cached_property
    def _folded(self) -> Mapping[bytes, int]:
        found: dict[bytes, int] = {}
        for number, token in self.vocabulary.tokens.items():
            if token.kind != "special" and number < self.rows:
                found.setdefault(_fold(token.bytes), number)
        found.pop(b"", None)
        return found


def _fold(raw: bytes) -> bytes:
    try:
        return raw.decode().lower().lstrip(" ").encode()
    except UnicodeDecodeError:
        return raw


def _special(
    finders: _Finders, donor: Vocabulary, named: Mapping[str, str]
) -> dict[int, tuple[int, How]]:
    """Find the special tokens of the donor, and whatever has a role or was named by the user."""
    base = finders.vocabulary
    found = dict(_named(finders, donor, named))
    for role in ROLES:
        number, target = donor.roles.get(role), base.roles.get(role)
        # Of several roles of one token the first counts, so it is not overwritten.
        if number is not None and target is not None and target < finders.rows:
            found.setdefault(number, (target, "role"))
    # What is special in one of them may be a mere added token in the other.
    for content in [*donor.special, *(text for text in base.special if text in donor.ids)]:
        number, target = donor.ids[content], base.ids.get(content)
        if target is None or target >= finders.rows:
            continue
        if donor.tokens[number].is_added and base.tokens[target].is_added:
            found.setdefault(number, (target, "special"))
    return found


def _named(
    finders: _Finders, donor: Vocabulary, named: Mapping[str, str]
) -> Iterator[tuple[int, tuple[int, How]]]:
    """Find what the user named."""
    base = finders.vocabulary
    for content, target in named.items():
        for vocabulary, text in ((donor, content), (base, target)):
            if text not in vocabulary.ids:
                what = f"has no token {printable(text, 80)}{_near(text, vocabulary)}"
                raise InputError(Problem(vocabulary.label, what, "correct `roles`"))
        number = base.ids[target]
        if number >= finders.rows:
            what = f"its token {printable(target, 80)} (id {number}) has no row"
            raise InputError(Problem(base.label, f"{what}: there are {finders.rows}"))
        yield donor.ids[content], (number, "role")


def _near(text: str, vocabulary: Vocabulary) -> str:
    known = vocabulary.special
    return did_you_mean(text, known) if len(known) < 100 else ""  # noqa: PLR2004
