"""Votes of several models on an answer: all that is left where only texts are given.

Answers are the same if they are so without case and white space, or in the part that a pattern
names. Each model's weight goes to its answer; the heaviest answer wins, of equals the one of the
heaviest model, and of these the first. The text that is given is that of its heaviest model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from mergepipe.model import Generation

__all__ = ["ballot", "elected"]

_EQUAL = 1e-12  # of weights that sum to 1


def ballot(text: str, pattern: re.Pattern[str] | None = None) -> str:
    r"""Give the part of a text that is voted on: the last match of a pattern, else all of it.

    >>> ballot("  The ANSWER\n is 4. "), ballot("2 + 2 is 4.", re.compile(r"\d+"))
    ('the answer is 4.', '4')
    """
    if pattern is not None:
        found = list(pattern.finditer(text))
        if found:
            text = found[-1][1 if pattern.groups else 0] or ""
    return " ".join(text.split()).casefold()


def elected(
    answers: Sequence[Generation],
    weights: Sequence[float],
    pattern: re.Pattern[str] | None = None,
) -> Generation:
    """Give the answer that most weight is on; its cost is that of all.

    >>> said = [Generation("4", 1), Generation("5", 1), Generation(" 5 ", 2)]
    >>> elected(said, [0.4, 0.25, 0.35])
    Generation(text=' 5 ', tokens=4)
    """
    sides: dict[str, list[int]] = {}
    for at, one in enumerate(answers):
        sides.setdefault(ballot(one.text, pattern), []).append(at)
    totals = {side: math.fsum(weights[at] for at in members) for side, members in sides.items()}
    top = max(totals.values())
    best = [at for side, members in sides.items() if totals[side] >= top - _EQUAL for at in members]
    speaker = min(best, key=lambda at: (-weights[at], at))
    return Generation(answers[speaker].text, sum(one.tokens for one in answers))
