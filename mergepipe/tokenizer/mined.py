"""A source vocabulary mapped to a pivot's by spelling: minimum edit distance (MinED).

    map(s) = argmin_p edit_distance(s, p)

Fanqi Wan, Xinting Huang, Deng Cai, Xiaojun Quan, Wei Bi & Shuming Shi, Knowledge Fusion of Large
Language Models, ICLR 2024 (https://arxiv.org/abs/2401.10491). Distances are between the texts
that tokens stand for, so that no vocabulary's mark for a space counts. A token with the same text
is found at once; of tokens as near the first in the pivot's vocabulary is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mergepipe.tokenizer.vocabulary import Token, Vocabulary

__all__ = ["edit_distance", "map_by_spelling", "spelling"]


def spelling(token: Token) -> str:
    """Give what is compared: the token's text, with bytes that are no text as lone surrogates."""
    return token.bytes.decode(errors="surrogateescape")


def edit_distance(one: str, other: str) -> int:
    """Count the insertions, deletions and substitutions of characters between two texts."""
    from rapidfuzz.distance import Levenshtein

    return int(Levenshtein.distance(one, other))


def map_by_spelling(
    source: Vocabulary, pivot: Vocabulary, ids: Iterable[int] | None = None
) -> dict[int, int]:
    """Give the pivot's token for each of the source's (or for those of `ids`).

    Special tokens are mapped to those of the same role or content, and left out where there are
    none.
    """
    known: dict[str, int] = {}
    for number, token in pivot.tokens.items():
        if token.kind != "special":
            known.setdefault(spelling(token), number)
    nearest = _Nearest(known)
    back = {number: role for role, number in reversed([*source.roles.items()])}
    found: dict[int, int] = {}
    for number in source.tokens if ids is None else ids:
        token = source.tokens[number]
        if token.kind == "special":
            same = pivot.roles.get(back.get(number, ""), pivot.special.get(token.text))
        else:
            text = spelling(token)
            same = known[text] if text in known else nearest(text)
        if same is not None:
            found[number] = same
    return found


class _Nearest:
    """Searches texts outward from the length of what is looked for."""

    def __init__(self, known: Mapping[str, int]) -> None:
        self.lengths: dict[int, list[str]] = {}
        for text in known:
            self.lengths.setdefault(len(text), []).append(text)
        self.known = known
        self.longest = max(self.lengths, default=0)

    def __call__(self, text: str) -> int | None:
        from rapidfuzz import process
        from rapidfuzz.distance import Levenshtein

        best: tuple[int, int] | None = None  # distance, id
        for gap in range(max(len(text), self.longest) + 1):
            if best is not None and gap > best[0]:
                break
            for length in {len(text) - gap, len(text) + gap}:
                found = process.extractOne(
                    text,
                    self.lengths.get(length, ()),
                    scorer=Levenshtein.distance,
                    score_cutoff=None if best is None else best[0],
                )
                if found is not None:
                    one = (int(found[1]), self.known[str(found[0])])
                    best = one if best is None else min(best, one)
        return None if best is None else best[1]
