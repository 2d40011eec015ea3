"""Trials as dots: how a search went on, and what it traded for what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mergepipe.report.charts.scales import WIDTH, Scale, across, figure, label, shown, span, ticks
from mergepipe.report.markup import Node, tag

__all__ = ["Dot", "scatter"]

_HEIGHT, _TOP, _FOOT, _LEFT, _RIGHT = 210, 18, 38, 52, 14
_MOST_NAMED = 400  # dots that each say who they are; more are drawn as one path
_GRAIN = 3  # pixels: of dots that cover each other one is drawn
_HIGHEST = 0.97  # quantile of what is shown at its place; what lies above is drawn at the edge


@dataclass(frozen=True, slots=True)
class Dot:
    """A trial; a strong one is of the line."""

    x: float
    y: float
    name: str
    is_strong: bool = False


def scatter(
    title: str,
    dots: Sequence[Dot],
    line: Sequence[tuple[float, float]],
    *,
    names: tuple[str, str],
    clipped: bool = False,
) -> Node:
    """Draw dots and a line through the strong ones; `names` are those of the axes."""
    xs, ys = [one.x for one in dots], [one.y for one in dots]
    top = float(np.quantile(ys, _HIGHEST)) if clipped else max(ys)
    low_x, high_x = span(xs, 0.03)
    low_y, high_y = span([min(ys), max(top, *(y for _, y in line))], 0.06)
    place = (
        Scale(low_x, high_x, _LEFT, WIDTH - _RIGHT),
        Scale(low_y, high_y, _TOP + _HEIGHT, _TOP),
    )
    best = min(dots, key=lambda one: one.y)
    return figure(
        title,
        f"{len(dots)} trials; the least {names[1]} is {shown(best.y)}: {best.name}",
        (WIDTH, _TOP + _HEIGHT + _FOOT),
        _levels(place[1], ticks(low_y, high_y)),
        across(place[0], _TOP, _TOP + _HEIGHT, ticks(low_x, high_x, 5)),
        label(names[0], WIDTH - _RIGHT, _TOP + _HEIGHT + 33, anchor="end", kind="tick"),
        label(names[1], 0, 10, kind="tick"),
        _weak([one for one in dots if not one.is_strong], place),
        _line(line, place),
        (_dot(one, place, "dot strong", 4) for one in dots if one.is_strong),
    )


def _levels(up: Scale, places: Sequence[float]) -> Iterator[Node]:
    for value in places:
        y = up(value)
        yield tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
        yield label(shown(value), _LEFT - 6, y + 4, anchor="end", kind="tick")


def _weak(dots: Sequence[Dot], place: tuple[Scale, Scale]) -> Iterator[Node]:
    if len(dots) <= _MOST_NAMED:
        yield from (_dot(one, place, "dot weak", 3) for one in dots)
        return
    places = {
        (round(place[0](one.x) / _GRAIN), round(place[1](one.y) / _GRAIN)): None for one in dots
    }
    path = "".join(f"M{x * _GRAIN} {y * _GRAIN}h0" for x, y in places)
    yield tag("path", tag("title", f"{len(dots)} trials"), d=path, class_="weak-dots")


def _dot(dot: Dot, place: tuple[Scale, Scale], kind: str, radius: int) -> Node:
    told = tag("title", dot.name)
    return tag("circle", told, cx=place[0](dot.x), cy=place[1](dot.y), r=radius, class_=kind)


def _line(line: Sequence[tuple[float, float]], place: tuple[Scale, Scale]) -> Node | None:
    if not line:
        return None
    points = " ".join(f"{place[0](x):.1f},{place[1](y):.1f}" for x, y in line)
    return tag("polyline", points=points, class_="curve best")
