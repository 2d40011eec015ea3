"""How far judges agree beyond chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import permutations

__all__ = ["cohen", "krippendorff"]


def cohen(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Give Cohen's κ of two judges' marks, None where both always give the same one mark.

        κ = (p_o − p_e) / (1 − p_e),   p_e = Σ_m p_1(m) p_2(m)

    Cohen, Educational and Psychological Measurement 20, 1960.

    >>> cohen([1, 1, 0, 0], [1, 0, 0, 0])  # p_o = 3/4, p_e = 1/2·1/4 + 1/2·3/4
    0.5
    """
    count = len(first)
    alike = sum(a == b for a, b in zip(first, second, strict=True)) / count
    ours, theirs = Counter(first), Counter(second)
    chance = math.fsum(ours[mark] * theirs[mark] for mark in ours) / count**2
    return None if chance == 1 else (alike - chance) / (1 - chance)


def krippendorff(items: Sequence[Sequence[float]]) -> float | None:
    """Give Krippendorff's α of interval marks, two or more an item; None if all are equal.

        α = 1 − D_o / D_e

    D_o is the mean over marks of (a − b)² within items, D_e that between all pairs of marks.
    Krippendorff, Content Analysis, 1980.

    >>> krippendorff([[1, 1], [2, 2], [1, 2]])  # D_o = 2/6; D_e = 18/30
    0.4444444444444444
    """
    marks = [mark for item in items for mark in item]
    count = len(marks)
    observed = math.fsum(
        math.fsum((a - b) ** 2 for a, b in permutations(item, 2)) / (len(item) - 1)
        for item in items
    )
    total, squares = math.fsum(marks), math.fsum(mark**2 for mark in marks)
    expected = 2 * (count * squares - total**2)
    if not expected:
        return None
    return 1 - (count - 1) * observed / expected
