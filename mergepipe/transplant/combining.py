"""Rows as combinations of the base's rows, and what tokens get that have none."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mergepipe.tokenizer.vocabulary import Token
from mergepipe.transplant.task import Approximation, Fitted, Ids, Table, Task

__all__ = [
    "Fallback",
    "Weigh",
    "base_tokens",
    "combined",
    "draw",
    "padded",
    "pieces",
    "text_of",
]

# Positions in `task.missing` -> ids of the base [n, k] (-1: no row), and their weights [n, k].
Weigh: TypeAlias = Callable[[Ids], tuple[Tensor, Tensor]]
# For a token without a combination: independent draws per column with the mean and deviation of
# the base's rows; their mean; the mean of the base's tokens that spell it.
Fallback: TypeAlias = Literal["normal", "mean", "subword"]

_BLOCK = 4096  # rows of a table that are held at once


def text_of(token: Token) -> str | None:
    """Give the text of a token; None if it is special or part of a character."""
    try:
        return None if token.kind == "special" else token.bytes.decode()
    except UnicodeDecodeError:
        return None


def base_tokens(task: Task) -> Ids:
    """Give the ids of the base's ordinary tokens that have a row, ascending."""
    tokens = task.match.base.tokens.values()
    rows = task.base.rows
    return np.array([t.id for t in tokens if t.kind != "special" and t.id < rows], np.int64)


def pieces(task: Task, position: int) -> list[int]:
    """Give the ids of the base that spell a missing token; none for a special one."""
    token = task.match.donor.tokens[int(task.missing[position])]
    found = () if token.kind == "special" else task.segment(token.bytes)
    return [number for number in found if number < task.base.rows]


def padded(task: Task, rows: list[dict[int, float]]) -> tuple[Tensor, Tensor]:
    """Write combinations {base id: weight} as ids (-1: no row) and weights, both [n, k]."""
    width = max((len(row) for row in rows), default=0) or 1
    ids = np.full((len(rows), width), -1, np.int64)
    weights = np.zeros((len(rows), width), np.float32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = list(row)
        weights[number, : len(row)] = list(row.values())
    return torch.from_numpy(ids).to(task.device), torch.from_numpy(weights).to(task.device)


def combined(task: Task, weigh: Weigh, fallback: Fallback) -> Fitted:
    """Make rows y_d = Σ_b w(d, b) E[b], summed in fp64; tokens without weights get the fallback."""

    @cache
    def moments() -> tuple[Tensor, Tensor]:
        return _moments(task.base, base_tokens(task), task.device)

    def fitted(positions: Ids) -> Approximation:
        ids, weights = weigh(positions)
        lacking = (ids < 0).all(1).cpu().numpy()
        if fallback == "subword" and lacking.any():
            ids, weights = _with_pieces(task, positions, lacking, ids, weights)
            lacking = (ids < 0).all(1).cpu().numpy()
        rows = _sums(task, ids, weights)
        for row in np.flatnonzero(lacking):
            mean, deviation = moments()
            rows[row] = mean
            if fallback == "normal":
                drawn = draw(task, int(task.missing[positions[row]]), len(mean))
                rows[row] = mean + deviation * drawn
        return Approximation(rows.float(), ids=ids, weights=weights)

    return fitted


def _sums(task: Task, ids: Tensor, weights: Tensor) -> Tensor:
    """Give Σ_k w[n, k] E[id[n, k]] in fp64: [n, columns]."""
    total = torch.zeros(len(ids), task.base.columns, dtype=torch.float64, device=task.device)
    used = torch.unique(ids[ids >= 0])
    for block in used.split(_BLOCK) if len(used) else ():
        place = torch.searchsorted(block, ids.clamp(min=0)).clamp(max=len(block) - 1)
        inside = torch.where(block[place] == ids, weights, 0).double()
        dense = torch.zeros(len(ids), len(block), dtype=torch.float64, device=task.device)
        dense.scatter_add_(1, place, inside)
        total += dense @ task.base[block.cpu().numpy()].double()
    return total


def _with_pieces(
    task: Task, positions: Ids, lacking: np.ndarray, ids: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Give the tokens that lack weights the mean of the pieces that spell them."""
    found = []
    for position, lacks in zip(positions, lacking, strict=True):
        spelled = pieces(task, int(position)) if lacks else []
        row: dict[int, float] = {}
        for number in spelled:
            row[number] = row.get(number, 0.0) + 1 / len(spelled)
        found.append(row)
    more, their_weights = padded(task, found)
    return torch.cat([ids, more], 1), torch.cat([weights, their_weights], 1)


def _moments(table: Table, ids: Ids, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column over these rows, in fp64."""
    total = torch.zeros(2, table.columns, dtype=torch.float64, device=device)
    shift = table[ids[:1]].double()[0]
    for start in range(0, len(ids), _BLOCK):
        block = table[ids[start : start + _BLOCK]].double() - shift
        total += torch.stack([block.sum(0), block.square().sum(0)])
    mean, square = total / len(ids)
    return mean + shift, (square - mean.square()).clamp(min=0).sqrt()


def draw(task: Task, token: int, columns: int) -> Tensor:
    """Give standard normal numbers that depend on the seed, the token and the side alone."""
    key = np.array([task.seed, 2 * token + (task.side == "output")], np.uint64)
    drawn = np.random.Generator(np.random.Philox(key=key)).standard_normal(columns)
    return torch.from_numpy(drawn).to(task.device)
