"""Standard errors, intervals and tests, for means and for ratios of sums, over items or clusters.

Every function takes fp64 arrays of shape [n], one entry an item. A metric is Σx / Σb: with b = 1
it is a mean. Items of one cluster (questions on one passage, translations of one text) are not
independent; with `clusters`, their labels, the clusters take the items' place.

Miller, "Adding Error Bars to Evals", 2024, https://arxiv.org/abs/2411.00640; Efron and Tibshirani,
"An Introduction to the Bootstrap", 1993; Wilson, JASA 22, 1927; McNemar, Psychometrika 12, 1947;
Holm, Scand. J. Stat. 6, 1979.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "average_error",
    "clustered",
    "holm",
    "items_needed",
    "mcnemar",
    "ratio_error",
    "resampled",
    "t_interval",
    "t_probability",
    "wilson",
]

Array: TypeAlias = NDArray[np.float64]
RESAMPLES = 10_000
_ENTRIES = 1 << 22  # of counts in memory at once: 32 MB


def clustered(values: Array, clusters: Sequence[str] | None) -> Array:
    """Sum `values`, of shape [n] or [n, k], over the items of each cluster, in order of sight.

    >>> clustered(np.array([1.0, 2.0, 4.0]), ["a", "b", "a"]).tolist()
    [5.0, 2.0]
    """
    if clusters is None:
        return values
    places = {label: place for place, label in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(places), *values.shape[1:]))
    np.add.at(sums, [places[label] for label in clusters], values)
    return sums


def ratio_error(x: Array, b: Array, clusters: Sequence[str] | None = None) -> float:
    """Give the standard error of Σx / Σb by the delta method; NaN below two items or clusters.

        e_i = x_i − r b_i,   se = √( C/(C−1) Σ_c (Σ_{i∈c} e_i)² ) / Σb

    With b = 1 and no clusters this is s/√n.

    >>> ratio_error(np.array([1.0, 2.0, 3.0]), np.ones(3))  # s = 1
    0.5773502691896257
    """
    ratio = x.sum() / b.sum()
    residuals = clustered(x - ratio * b, clusters)
    count = len(residuals)
    if count < 2:  # noqa: PLR2004
        return math.nan
    return math.sqrt(count / (count - 1)) * math.hypot(*residuals.tolist()) / abs(float(b.sum()))


def average_error(errors: Sequence[float]) -> float:
    """Give the standard error of the unweighted mean of independent scores.

    >>> average_error([3.0, 4.0])
    2.5
    """
    return math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)


def wilson(right: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Give Wilson's interval for a proportion: `right` of `n`.

    >>> [round(bound, 4) for bound in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = right / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def t_interval(
    value: float, error: float, freedom: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Give Student's interval around `value` with `freedom` degrees of freedom.

    >>> [round(bound, 3) for bound in t_interval(0.0, 1.0, 4)]
    [-2.776, 2.776]
    """
    low, high = 0.0, 1.0
    while t_probability(high, freedom) > 1 - confidence:
        low, high = high, 2 * high
    for _ in range(80):  # bisection, to the last bit
        middle = (low + high) / 2
        if t_probability(middle, freedom) > 1 - confidence:
            low = middle
        else:
            high = middle
    return value - high * error, value + high * error


def t_probability(t: float, freedom: int) -> float:
    """Give P(|T| ≥ |t|) of Student's T: Abramowitz and Stegun, 26.7.3 and 26.7.4.

    >>> round(t_probability(2.776445, 4), 6)
    0.05
    """
    if math.isinf(t):
        return 0.0
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(freedom // 2):
        total += term
        step = (2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2)
        term *= cosine**2 * step
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1 - inside))


def mcnemar(wins: int, losses: int) -> float:
    """Give the exact two-sided p of that many discordant pairs, were both as likely.

    >>> mcnemar(1, 5)
    0.21875
    """
    n, few = wins + losses, min(wins, losses)
    tail, choices = 0, 1  # whole numbers are exact, whatever n is
    for k in range(few + 1):
        tail += choices
        choices = choices * (n - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << n))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Correct p values of several comparisons, so that a false one among all is as unlikely.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    corrected, least = [0.0] * len(order), 0.0
    for rank, at in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * probabilities[at]))
        corrected[at] = least
    return corrected


def items_needed(spread: float, difference: float) -> int:
    """Give the items needed to see a difference: with 80 % power, at 5 %, two-sided.

        n = (z_{0.975} + z_{0.8})² σ_d² / δ² ≈ 7.85 σ_d² / δ²

    `spread` is the standard deviation σ_d of the paired differences. For accuracies of which a
    share q of the answers differ, σ_d² = q − δ².

    >>> items_needed(math.sqrt(0.1 - 0.02**2), 0.02)
    1955
    """
    z = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
    return math.ceil((z * spread / difference) ** 2)


def resampled(sums: Array, seed: int, resamples: int = RESAMPLES) -> Iterator[Array]:
    """Draw items (rows of `sums`, [n, k]) with replacement, and add them up: blocks of [r, k].

    All columns share their draws, so that what is compared between them is paired.
    """
    n = len(sums)
    generator = np.random.Generator(np.random.Philox(seed))
    block = max(1, _ENTRIES // n)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        yield counts.astype(np.float64) @ sums
