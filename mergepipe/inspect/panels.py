"""Heat maps, layers down and kinds of tensors across, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from mergepipe.inspect.report import Report
from mergepipe.inspect.sums import Sums, model_numbers, pair_numbers

__all__ = ["Panel", "panels"]

_Number: TypeAlias = Callable[[Sums], float | None]
_Colours: TypeAlias = tuple[str, str, str]

_NORM = ("#f7fbff", "#6baed6", "#08306b")
_COSINE = ("#b2182b", "#f7f7f7", "#2166ac")
_CONFLICT = ("#2166ac", "#f7f7f7", "#b2182b")


@dataclass(frozen=True, slots=True)
class Panel:
    """One heat map: values in [low, high] and the colours of low, middle and high."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]  # by row; None where there is no number
    low: float
    high: float
    colours: _Colours


def panels(report: Report) -> Iterator[Panel]:
    """Give the relative norms of every model, then cosines and sign conflicts of every pair.

    Relative norms share one scale, so that models can be compared.
    """

    def drawn(title: str, number: _Number, low: float, high: float, colours: _Colours) -> Panel:
        rows, columns = tuple(report.layers), tuple(report.kinds)
        cells = [[report.cells.get((row, column)) for column in columns] for row in rows]
        values = tuple(tuple(None if x is None else number(x) for x in row) for row in cells)
        return Panel(title, rows, columns, values, low, high, colours)

    norms = [
        model_numbers(sums, i).relative_norm or 0.0
        for i in range(len(report.models))
        for sums in report.cells.values()
    ]
    highest = max(norms) or 1.0
    for i, label in enumerate(report.labels):
        norm = partial(_norm, i)
        yield drawn(f"{label}: relative norm", norm, 0.0, highest, _NORM)
    for i, j in report.pairs:
        name = f"{report.labels[i]} + {report.labels[j]}"
        yield drawn(f"{name}: cosine", partial(_cosine, i, j), -1.0, 1.0, _COSINE)
        yield drawn(f"{name}: sign conflict", partial(_conflict, i, j), 0.0, 1.0, _CONFLICT)


def _norm(i: int, sums: Sums) -> float | None:
    return model_numbers(sums, i).relative_norm


def _cosine(i: int, j: int, sums: Sums) -> float | None:
    return pair_numbers(sums, i, j).cosine


def _conflict(i: int, j: int, sums: Sums) -> float | None:
    return pair_numbers(sums, i, j).conflict
