"""Give a missing token the mean of the base's tokens that spell it.

Gee et al., "Fast Vocabulary Transfer for Language Model Compression", EMNLP 2022 Industry
(https://arxiv.org/abs/2402.09977); Gu et al., "ReTok", 2024 (https://arxiv.org/abs/2410.04335).

    s = the base's tokens for the text of t, s_1 ... s_n
    mean:           y_t = (1/n) Σ_i E[s_i]
    sum:            y_t = Σ_i E[s_i]
    weighted_mean:  y_t = Σ_i w_i E[s_i],  w_i ∝ i, the last piece heaviest; in the head the first
    first_last:     y_t = E[s_n]; in the head E[s_1]

What follows a token depends most on its last piece; what the head must predict is its first. (The
program mergekit-tokensurgeon weighs the other way round.) `sum` makes rows that are too long. The
text is what the token's bytes say, not how its vocabulary spells them; bytes that are no text are
spelled by byte tokens. A token that the base cannot spell gets the mean of the base's rows.

>>> weights("weighted_mean", 3, "input")
[Fraction(1, 6), Fraction(1, 3), Fraction(1, 2)]
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, TypeAlias

from pydantic import Field
from torch import Tensor

from mergepipe.transplant import Fitted, Ids, Side, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.combining import combined, padded, pieces
from mergepipe.transplant.task import Task

Mode: TypeAlias = Literal["mean", "sum", "weighted_mean", "first_last"]


class Parameters(Base):
    """How pieces are put together."""

    mode: Mode = Field("mean", description="mean, sum, weighted_mean or first_last")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Spell tokens as they are asked for."""

    def weigh(positions: Ids) -> tuple[Tensor, Tensor]:
        return padded(task, [_row(task, int(one), parameters.mode) for one in positions])

    return combined(task, weigh, "mean")


def _row(task: Task, position: int, mode: Mode) -> dict[int, float]:
    spelled = pieces(task, position)
    row: dict[int, float] = {}
    for piece, weight in zip(spelled, weights(mode, len(spelled), task.side), strict=True):
        row[piece] = row.get(piece, 0.0) + float(weight)
    return row


def weights(mode: Mode, count: int, side: Side) -> list[Fraction]:
    """Give the weight of each piece in order."""
    if mode in ("mean", "sum"):
        return [Fraction(1, max(count, 1) if mode == "mean" else 1)] * count
    if mode == "first_last":
        found = [Fraction(int(place == count)) for place in range(1, count + 1)]
    else:
        total = count * (count + 1) // 2
        found = [Fraction(place, total) for place in range(1, count + 1)]
    return found if side == "input" else found[::-1]


METHOD = TransplantMethod(Parameters, fit)
