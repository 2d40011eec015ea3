"""Heat maps: modules down, layers across; numbers in the cells where there is room for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mergepipe.report.charts.scales import WIDTH, figure, fitted, gutter, label, shown
from mergepipe.report.colours import STEPS
from mergepipe.report.markup import Node, tag

__all__ = ["Map", "heat"]

_ROW, _TOP, _LEGEND, _GAP = 20, 18, 34, 8
_WIDEST, _ROOM = 80, 25  # of a cell; what a number needs
_FEW = 5  # columns that may be wide
_MEAN = 46  # width of the column at the right
_FIRST = 44  # width of the column of what is in no layer


@dataclass(frozen=True, slots=True)
class Map:
    """Values by row and column, None where there is none, and the scale that colours them.

    `means` are of the rows. With `apart`, the first column stands apart from the others.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    low: float
    high: float
    ramp: Literal["size", "conflict", "sign"]
    means: Sequence[float | None] = ()
    apart: bool = False
    mean: str = "all"

    def step(self, value: float) -> int:
        """Give the step of the ramp that a value has."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return round(min(max(share, 0.0), 1.0) * (STEPS - 1))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the cells of a map lie."""

    left: float
    cell: float
    apart: bool

    def place(self, column: int) -> tuple[float, float]:
        """Give a column's left side and width."""
        if not self.apart:
            return self.left + column * self.cell, self.cell
        if column == 0:
            return self.left, _FIRST
        return self.left + _FIRST + _GAP + (column - 1) * self.cell, self.cell


def heat(title: str, given: Map) -> Node:
    """Draw a map with its scale below."""
    columns = _columns(given)
    foot = _TOP + _ROW * len(given.rows)
    x, width = columns.place(len(given.columns) - 1)
    right = x + width
    return figure(
        title,
        _said(given),
        (WIDTH, foot + _LEGEND),
        _headings(given, columns, right),
        (_row(given, at, columns, right) for at in range(len(given.rows))),
        _legend(given, columns.left, foot + 12),
    )


def _columns(given: Map) -> _Columns:
    left = gutter(given.rows, 128)
    room = WIDTH - left - (_MEAN if given.means else 4) - (_FIRST + _GAP if given.apart else 0)
    count = len(given.columns) - given.apart
    widest = _WIDEST if count < _FEW else _WIDEST / 1.6
    return _Columns(left, min(widest, room / max(count, 1)), given.apart)


def _said(given: Map) -> str:
    """Give the map's rows in words: their means, or their values."""
    if given.means:
        pairs = zip(given.rows, given.means, strict=True)
        return "; ".join(f"{name} {shown(value)}" for name, value in pairs)
    lines = zip(given.rows, given.values, strict=True)
    return "; ".join(f"{name}: {', '.join(shown(x) for x in line)}" for name, line in lines)


def _headings(given: Map, columns: _Columns, right: float) -> Iterator[Node]:
    every = max(1, round(_ROOM / columns.cell))
    for at, name in enumerate(given.columns):
        if given.apart and at and (at - 1) % every:
            continue
        x, width = columns.place(at)
        text = fitted(name.rpartition(".")[2], max(width, _ROOM), 11)
        yield label(text, x + width / 2, _TOP - 6, anchor="middle", kind="tick", whole=name)
    if given.means:
        yield label(given.mean, right + _MEAN - 6, _TOP - 6, anchor="end", kind="tick")


def _row(given: Map, at: int, columns: _Columns, right: float) -> Iterator[Node]:
    y, name = _TOP + at * _ROW, given.rows[at]
    text = fitted(name, columns.left - 10)
    yield label(text, columns.left - 6, y + 14, anchor="end", kind="row", whole=name)
    for column, value in enumerate(given.values[at]):
        x, width = columns.place(column)
        yield from _cell(given, (x, y, width), value, f"{name}, {given.columns[column]}")
    if given.means:
        value = given.means[at]
        mean = shown(value) if value is None or abs(value) >= 1 else f"{value:.3f}"
        yield label(mean, right + _MEAN - 6, y + 14, anchor="end", kind="number")


def _cell(
    given: Map, place: tuple[float, float, float], value: float | None, name: str
) -> Iterator[Node]:
    (x, y, width), gap = place, 1.0 if place[2] > 4 else 0.0  # noqa: PLR2004
    if value is None:
        return
    step = given.step(value)
    told = tag("title", f"{name}: {shown(value)}")
    kind = f"{given.ramp}{step}"
    yield tag("rect", told, x=x, y=y, width=width - gap, height=_ROW - 1, class_=kind)
    if width >= _ROOM:
        text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else shown(value)
        yield label(text, x + (width - gap) / 2, y + 14, anchor="middle", kind=f"on-{kind}")


def _legend(given: Map, left: float, y: float) -> Iterator[Node]:
    width = 14
    for step in range(STEPS):
        yield tag(
            "rect", x=left + step * width, y=y, width=width, height=8, class_=f"{given.ramp}{step}"
        )
    yield label(shown(given.low), left - 6, y + 8, anchor="end", kind="tick")
    yield label(shown(given.high), left + STEPS * width + 6, y + 8, kind="tick")
