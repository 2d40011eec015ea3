"""The scores of texts: from their echoes, windows, and where nothing was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergepipe.model import Score
from mergepipe.model.api_answers import Echo
from mergepipe.model.api_faults import Failure
from mergepipe.model.traces import TokenScores

__all__ = ["filled", "scored_from", "summed", "tokens_from"]

_NOTHING = Score(0.0, 0, 0, greedy=True)
_UNKNOWN = Failure("stop", "the first scored token has no probability")


def scored_from(echo: Echo, start: int, size: int) -> Score | Failure:
    """Score the tokens from index `start` on, `size` bytes of text."""
    return echo.score(start, size) or _UNKNOWN


def tokens_from(echo: Echo, start: int) -> TokenScores | Failure:
    """Give the scores of each token from index `start` on."""
    known = [value for value in echo.logprobs[start:] if value is not None]
    return (known, echo.greedy[start:]) if len(known) == len(echo.starts) - start else _UNKNOWN


def filled(found: Sequence[Score | None], empty: Sequence[bool]) -> list[Score | None]:
    """Put the scores of nothing where there was nothing to ask."""
    scores = iter(found)
    return [_NOTHING if nothing else next(scores) for nothing in empty]


def summed(
    found: Sequence[Score | None], counts: Sequence[int], texts: Sequence[str]
) -> list[Score | None]:
    """Add up each text's windows."""
    scores = iter(found)
    sums: list[Score | None] = []
    for count, text in zip(counts, texts, strict=True):
        mine = [next(scores) for _ in range(count)]
        parts = [score for score in mine if score is not None]
        logprob, tokens = math.fsum(p.logprob for p in parts), sum(p.tokens for p in parts)
        whole = Score(logprob, tokens, len(text.encode()), all(p.greedy for p in parts))
        sums.append(whole if len(parts) == count else None)
    return sums
