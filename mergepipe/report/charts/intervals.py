"""Values with their intervals, a line each: who is better, and by more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mergepipe.report.charts.scales import (
    Scale,
    across,
    figure,
    finite,
    fitted,
    gutter,
    label,
    shown,
    span,
    ticks,
)
from mergepipe.report.markup import Node, tag

__all__ = ["Row", "intervals"]

_WIDTH, _ROW, _FOOT, _TOP = 340, 24, 26, 4
_NUMBERS = 76  # width of the numbers at the right
_CAP = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A value and its 95 % interval; `kind` decides the mark, `word` says what is real.

    A value of None failed.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    kind: Literal["strong", "base", "plain"] = "plain"
    word: Literal["better", "worse", ""] = ""

    @property
    def said(self) -> str:
        """The row in words."""
        if self.value is None:
            return f"{self.label} failed"
        bounds = "" if self.low is None else f" ({shown(self.low)} to {shown(self.high)})"
        return f"{self.label} {shown4(self.value)}{bounds}{', ' if self.word else ''}{self.word}"


def shown4(value: float) -> str:
    """Give a number with the places that scores have."""
    return f"{value:.3f}" if abs(value) < 1000 else shown(value)  # noqa: PLR2004


def intervals(
    title: str, rows: Sequence[Row], *, reference: float | None = None, signed: bool = False
) -> Node:
    """Draw a line a row; a dashed one through all of them marks `reference`."""
    left = gutter((one.label for one in rows), 112)
    values = finite(x for one in rows for x in (one.value, one.low, one.high))
    low, high = span([*values, *finite([reference])], 0.06)
    scale = Scale(low, high, left + 6, _WIDTH - _NUMBERS - 8)
    foot = _TOP + _ROW * len(rows)
    said = "; ".join(one.said for one in rows)
    return figure(
        title,
        said,
        (_WIDTH, foot + _FOOT),
        (_band(one, at) for at, one in enumerate(rows)),
        across(scale, _TOP, foot, ticks(low, high, 4)),
        _reference(scale, foot, reference),
        (list(_drawn(one, at, left, scale, signed=signed)) for at, one in enumerate(rows)),
    )


def _band(row: Row, at: int) -> Node | None:
    if row.kind != "strong":
        return None
    return tag("rect", x=0, y=_TOP + at * _ROW, width=_WIDTH, height=_ROW, rx=4, class_="band")


def _reference(scale: Scale, foot: float, value: float | None) -> Node | None:
    if not finite([value]) or value is None:
        return None
    x = scale(value)
    return tag("line", x1=x, x2=x, y1=_TOP, y2=foot, class_="reference")


def _drawn(row: Row, at: int, left: float, scale: Scale, *, signed: bool) -> Iterator[Node]:
    y = _TOP + (at + 0.5) * _ROW
    kind = f"row {row.kind}"
    name = fitted(row.label, left - 8)
    yield label(name, left - 4, y + 4, anchor="end", kind=kind, whole=row.label)
    if row.value is None or not finite([row.value]):
        yield label("failed", _WIDTH - 18, y + 4, anchor="end", kind="failed")
        return
    bounds = finite([row.low, row.high])
    if len(bounds) == 2:  # noqa: PLR2004
        yield from _whisker(row, scale(bounds[0]), scale(bounds[1]), y)
    yield _mark(row, scale(row.value), y)
    text = f"{row.value:+.4f}".replace("-", "−") if signed else shown4(row.value)
    yield label(text, _WIDTH - 18, y + 4, anchor="end", kind=f"number {row.kind}")
    if row.word:
        sign = "+" if row.word == "better" else "−"
        yield label(sign, _WIDTH - 14, y + 4, kind=row.word, whole=row.word)


def _whisker(row: Row, start: float, stop: float, y: float) -> Iterator[Node]:
    kind = f"whisker {row.kind}"
    yield tag("line", x1=start, x2=stop, y1=y, y2=y, class_=kind)
    for x in (start, stop):
        yield tag("line", x1=x, x2=x, y1=y - _CAP, y2=y + _CAP, class_=kind)


def _mark(row: Row, x: float, y: float) -> Node:
    told = tag("title", row.said)
    if row.kind == "base":
        return tag("rect", told, x=x - 4, y=y - 4, width=8, height=8, class_="mark base")
    radius = 6 if row.kind == "strong" else 4
    return tag("circle", told, cx=x, cy=y, r=radius, class_=f"mark {row.kind}")
