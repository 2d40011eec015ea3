"""Two tokenizations of one text, aligned where their bytes are cut at the same places.

What a group of tokens says in one tokenization is what its partner says in the other; the sums of
their log-probabilities can be compared, or one distilled into the other (Minixhofer, Vulić &
Ponti, Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025,
https://arxiv.org/abs/2503.20083).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate

from mergepipe.tokenizer.vocabulary import Token

__all__ = ["Alignment", "Group", "Roles", "align_tokens"]

# A role in a conversation -> the tokens that say it, as each vocabulary spells them; a side may
# say it by several tokens, or by none.
Roles = Mapping[str, tuple[Sequence[str], Sequence[str]]]

_WORD = re.compile(rb"\s*\S+|\s+")


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """Tokens `start` to `stop` of one sequence say what `start2` to `stop2` of the other do."""

    start: int
    stop: int
    start2: int
    stop2: int


@dataclass(frozen=True, slots=True)
class Alignment:
    """Groups in order; `coverage` is the share of bytes of text in them, of both sequences."""

    groups: tuple[Group, ...]
    coverage: float


@dataclass(frozen=True, slots=True)
class _Piece:
    """A token of text, or (with a role) a run of tokens that says a role; `text` is its text."""

    start: int
    stop: int
    text: bytes
    role: str | None


def align_tokens(
    first: Sequence[Token], second: Sequence[Token], roles: Roles | None = None
) -> Alignment:
    """Align two tokenizations of a text as finely as both allow, in linear time.

    Special tokens stand for no text: those of a role of `roles`, or of equal content, are
    partners; others are left out. Where the texts differ (one tokenizer lower-cases, say), words
    that are equal are aligned and the rest is left out. Spaces that only one of them has in front
    belong to its first token.
    """
    ours = _pieces(first, {role: said for role, (said, _) in (roles or {}).items()})
    theirs = _pieces(second, {role: said for role, (_, said) in (roles or {}).items()})
    groups: list[Group] = []
    for one, other in _partners(ours, theirs):
        if one[0].role is not None:
            groups.append(Group(one[0].start, one[0].stop, other[0].start, other[0].stop))
        else:
            groups += _text_groups(one, other)
    inside = sum(
        len(token.bytes)
        for group in groups
        for token in (*first[group.start : group.stop], *second[group.start2 : group.stop2])
        if token.kind != "special"
    )
    whole = sum(len(token.bytes) for token in (*first, *second) if token.kind != "special")
    return Alignment(tuple(groups), inside / whole if whole else 1.0)


def _pieces(tokens: Sequence[Token], roles: Mapping[str, Sequence[str]]) -> list[_Piece]:
    """Tell text from roles, the longest wording of a role first."""
    wordings = sorted(roles.items(), key=lambda item: -len(item[1]))
    found, at = [], 0
    while at < len(tokens):
        role, size = next(
            (
                (role, len(said))
                for role, said in wordings
                if said and [t.text for t in tokens[at : at + len(said)]] == list(said)
            ),
            (None, 1),
        )
        said = tokens[at : at + size]
        if role is None and said[0].kind == "special":
            role = f"={said[0].text}"
        text = b"".join(token.bytes for token in said if token.kind != "special")
        found.append(_Piece(at, at + size, text, role))
        at += size
    return found


def _partners(
    ours: Sequence[_Piece], theirs: Sequence[_Piece]
) -> Iterator[tuple[Sequence[_Piece], Sequence[_Piece]]]:
    """Pair roles in order, and the runs of text between two pairs."""
    marks = [[i for i, piece in enumerate(side) if piece.role] for side in (ours, theirs)]
    names = [[piece.role for piece in side if piece.role] for side in (ours, theirs)]
    blocks = SequenceMatcher(None, names[0], names[1], autojunk=False).get_matching_blocks()
    before = before2 = 0
    for block in blocks:
        for k in range(block.size):
            at, at2 = marks[0][block.a + k], marks[1][block.b + k]
            yield _texts(ours[before:at]), _texts(theirs[before2:at2])
            yield ours[at : at + 1], theirs[at2 : at2 + 1]
            before, before2 = at + 1, at2 + 1
    yield _texts(ours[before:]), _texts(theirs[before2:])


def _texts(pieces: Sequence[_Piece]) -> Sequence[_Piece]:
    """Give the pieces that stand for text, also those of a role that has no partner."""
    kept = [_Piece(one.start, one.stop, one.text, None) for one in pieces if one.text]
    return kept or [_Piece(0, 0, b"", None)]


def _text_groups(ours: Sequence[_Piece], theirs: Sequence[_Piece]) -> Iterator[Group]:
    """Close a group wherever both texts are cut, and what lies between is the same."""
    text, text2 = (b"".join(piece.text for piece in side) for side in (ours, theirs))
    places = _places(text, text2)
    cuts2 = {end: j for j, end in enumerate(accumulate(len(piece.text) for piece in theirs), 1)}
    cuts2.setdefault(0, 0)
    last = (0, 0, 0, 0) if 0 in places else None  # token, byte, token, byte of the last common cut
    for i, end in enumerate(accumulate(len(piece.text) for piece in ours), 1):
        end2 = places.get(end)
        j = cuts2.get(end2) if end2 is not None else None
        if end2 is None or j is None:
            continue
        if last is not None and i > last[0] and j > last[2]:
            same = text[last[1] : end] == text2[last[3] : end2] or last[:2] == (0, 0)
            if same and end > last[1]:
                yield Group(
                    ours[last[0]].start, ours[i - 1].stop, theirs[last[2]].start, theirs[j - 1].stop
                )
        last = (i, end, j, end2)


def _places(text: bytes, text2: bytes) -> dict[int, int]:
    """Where each place in one text lies in the other, in the parts that they share."""
    if text == text2:
        return {at: at for at in range(len(text) + 1)}
    spaces, spaces2 = (len(t) - len(t.lstrip(b" ")) for t in (text, text2))
    if text[spaces:] == text2[spaces2:]:
        moved = spaces2 - spaces
        return {0: 0} | {at: at + moved for at in range(spaces, len(text) + 1) if at + moved >= 0}
    words, words2 = (_WORD.findall(t) for t in (text, text2))
    starts, starts2 = ([0, *accumulate(map(len, side))] for side in (words, words2))
    found: dict[int, int] = {}
    for block in SequenceMatcher(None, words, words2, autojunk=False).get_matching_blocks():
        if block.size:
            start, start2 = starts[block.a], starts2[block.b]
            length = starts[block.a + block.size] - start
            found |= {start + k: start2 + k for k in range(length + 1)}
    return found
