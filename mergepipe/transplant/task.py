"""What a transplant method is given: two vocabularies, and the tables of embeddings.

The *base* is the model that is kept; the *donor* the one whose vocabulary it gets. Tokens that
both have keep the base's rows; a method makes the rows of the others, the *missing* ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.tokenizer.matching import Match

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mergepipe.checkpoint import Checkpoint

__all__ = ["Approximation", "Fitted", "Ids", "Side", "Table", "Task"]

Ids: TypeAlias = NDArray[np.int64]
# The input embedding, or the output head. A tied table is an input.
Side: TypeAlias = Literal["input", "output"]


class Table(Protocol):
    """Embeddings [rows, columns] of one model, read as they are asked for."""

    rows: int
    columns: int

    def __getitem__(self, ids: Ids, /) -> Tensor:
        """Give the rows of these ids in fp32, on the task's device: [len(ids), columns]."""


@dataclass(frozen=True)
class Task:
    """One table of the base to be made anew.

    `anchors` are the ordinary tokens that both have, as pairs of ids: `anchors[:, 0]` the donor's,
    ascending, `anchors[:, 1]` the base's. Special tokens are none. `missing` are donor ids.
    """

    side: Side
    match: Match
    base: Table
    donor: Table | None  # None where only a tokenizer was given
    anchors: Ids
    missing: Ids
    seed: int
    device: torch.device
    # The base's tokenizer without special tokens: bytes of text (whole or part of a character)
    # -> ids of the base that spell them; empty where it cannot.
    segment: Callable[[bytes], Sequence[int]]
    threads: int = 1
    other: Table | None = None  # the base's table of the other side, where it has two
    checkpoint: Checkpoint | None = None  # the base, for a method that asks the model
    tell: Callable[[str], None] = field(default=lambda _: None)


@dataclass(frozen=True, slots=True)
class Approximation:
    """Rows for some missing tokens: fp32 [n, columns of the base].

    `residual` [n] is how much of each donor row was not explained, relative to its norm; `ids`
    and `weights` [n, k] say of which base rows each is made, where it is made of rows (id -1: no
    row), which tells how a fine-tune of the base gets the same combination.
    """

    rows: Tensor
    residual: Tensor | None = None
    ids: Tensor | None = None
    weights: Tensor | None = None


# Positions in `task.missing` -> their rows. What it gives for a token depends on neither the
# others that it is asked for nor the order.
Fitted: TypeAlias = Callable[[Ids], Approximation]
