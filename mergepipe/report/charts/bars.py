"""Bars with their names and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mergepipe.report.charts.scales import WIDTH, Scale, figure, fitted, gutter, label
from mergepipe.report.markup import Node, tag

__all__ = ["bars"]

_ROW, _NUMBERS = 22, 64


def bars(title: str, rows: Sequence[tuple[str, float, str]], *, most: float | None = None) -> Node:
    """Draw a bar a row (name, value, the value as text), from 0 to `most`."""
    left = gutter((name for name, _, _ in rows), 190)
    top = most or max((value for _, value, _ in rows), default=0.0) or 1.0
    scale = Scale(0.0, top, left, WIDTH - _NUMBERS)
    said = "; ".join(f"{name} {text}" for name, _, text in rows)
    marks = (list(_bar(at, row, left, scale)) for at, row in enumerate(rows))
    return figure(title, said, (WIDTH, _ROW * len(rows) + 4), marks)


def _bar(at: int, row: tuple[str, float, str], left: float, scale: Scale) -> Iterator[Node]:
    (name, value, text), y = row, at * _ROW + 3
    stop = max(scale(value), left + 1)
    yield label(fitted(name, left - 10), left - 8, y + 13, anchor="end", kind="row", whole=name)
    yield tag(
        "rect", tag("title", f"{name}: {text}"), x=left, y=y + 2, width=stop - left, height=14,
        rx=2, class_="bar",
    )  # fmt: skip
    yield label(text, stop + 6, y + 13, kind="number")
