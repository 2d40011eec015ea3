"""Two tokenizations aligned by spelling, and a map between vocabularies from what was aligned.

FuseLLM aligns the tokens of a text by dynamic time warping over edit distances (Wan et al., ICLR
2024, https://arxiv.org/abs/2401.10491); FuseChat counts which tokens were aligned on a corpus and
maps each source token by these statistics (Fanqi Wan, Longguang Zhong, Ziyi Yang, Ruijun Chen &
Xiaojun Quan, FuseChat: Knowledge Fusion of Chat Models, 2024, https://arxiv.org/abs/2408.07990).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from mergepipe.kernels.warp import warp
from mergepipe.tokenizer.mined import edit_distance, spelling
from mergepipe.tokenizer.vocabulary import Token, Vocabulary

__all__ = ["Pairs", "Ties", "count_pairs", "map_by_statistics", "warp_tokens"]

# Which of two steps that cost the same is taken, after the diagonal one: back in the source, as
# FuseLLM does, or back in the pivot, as FuseChat does.
Ties: TypeAlias = Literal["fusellm", "fusechat"]
Pairs: TypeAlias = Counter[tuple[int, int]]  # (pivot id, source id) -> how often aligned

_CONTAINED = 0.1  # FuseChat's code: how much nearer a token is that contains the other


def warp_tokens(
    source: Sequence[Token], pivot: Sequence[Token], ties: Ties = "fusechat"
) -> tuple[tuple[int, ...], ...]:
    """Give for each token of the pivot's sequence the positions in the source's, ascending.

    The cost of a pair is the edit distance of their texts without spaces in front.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    if not source or not pivot:
        return tuple(() for _ in pivot)
    texts, rows = _coded(source)
    texts2, columns = _coded(pivot)
    costs = process.cdist(texts, texts2, scorer=Levenshtein.distance, dtype=np.float32)
    found: list[list[int]] = [[] for _ in pivot]
    for at, at2 in warp(rows, columns, costs, ties == "fusellm")[::-1]:
        found[at2].append(int(at))
    return tuple(map(tuple, found))


def _coded(tokens: Sequence[Token]) -> tuple[list[str], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    codes: dict[str, int] = {}
    numbers = [codes.setdefault(spelling(token).lstrip(" "), len(codes)) for token in tokens]
    return list(codes), np.array(numbers, np.int64)


def count_pairs(
    texts: Iterable[tuple[Sequence[Token], Sequence[Token]]], ties: Ties = "fusechat"
) -> Pairs:
    """Count over (source, pivot) tokenizations of texts which tokens were aligned."""
    pairs: Pairs = Counter()
    for source, pivot in texts:
        for token, places in zip(pivot, warp_tokens(source, pivot, ties), strict=True):
            pairs.update((token.id, source[at].id) for at in places)
    return pairs


def map_by_statistics(
    pairs: Pairs, source: Vocabulary, pivot: Vocabulary, *, as_coded: bool = False
) -> dict[int, int]:
    """Map every source token to the pivot's that it was aligned with most often.

    Of pivot tokens aligned as often the nearest in spelling is taken, then the lower id. A token
    that was never seen goes to the pivot's unknown token, or its end of text; the beginning and
    the end of text to the pivot's own. With `as_coded` the choice is that of FuseChat's program,
    which takes the least distance times sigmoid(count): counts hardly matter there.
    """
    seen: dict[int, list[tuple[int, int]]] = {}
    for (target, number), count in pairs.items():
        seen.setdefault(number, []).append((target, count))
    rest = pivot.roles.get("unk", pivot.roles.get("eos"))
    found = {}
    for number, token in source.tokens.items():
        text = spelling(token)
        ranked = [
            (_rank(text, spelling(pivot.tokens[target]), count, as_coded=as_coded), target)
            for target, count in seen.get(number, ())
        ]
        chosen = min(ranked)[1] if ranked else rest
        if chosen is not None:
            found[number] = chosen
    fixed = [role for role in ("bos", "eos") if role in source.roles and role in pivot.roles]
    return found | {source.roles[role]: pivot.roles[role] for role in fixed}


def _rank(text: str, other: str, count: int, *, as_coded: bool) -> tuple[float, float]:
    distance: float = edit_distance(text, other)
    if not as_coded:
        return -count, distance
    if text in other or other in text:
        distance *= _CONTAINED
    return distance / (1 + math.exp(-count)), 0
