"""Parallel coordinates, lying: a searched value a row, a trial a line from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergepipe.report.charts.scales import WIDTH, Scale, figure, fitted, gutter, label
from mergepipe.report.markup import Node, tag

__all__ = ["Axis", "Path", "parallel"]

_ROW, _TOP, _ENDS = 34, 14, 42


@dataclass(frozen=True, slots=True)
class Axis:
    """A searched value: its name, and the texts of its ends."""

    name: str
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Path:
    """A trial: its place in each range, 0 to 1, and how good it is, 0 to 1 for the best."""

    places: Sequence[float]
    good: float
    name: str
    is_best: bool = False


def parallel(title: str, axes: Sequence[Axis], paths: Sequence[Path]) -> Node:
    """Draw trials; the better ones are darker and on top, the best is thick."""
    left = gutter((one.name for one in axes), 170)
    scale = Scale(0.0, 1.0, left + _ENDS, WIDTH - _ENDS)
    best = [one.name for one in paths if one.is_best]
    return figure(
        title,
        f"{len(paths)} trials; the best is {', '.join(best)}",
        (WIDTH, 2 * _TOP + _ROW * (len(axes) - 1)),
        (_axis(at, one, left, scale) for at, one in enumerate(axes)),
        (_path(one, scale) for one in sorted(paths, key=lambda one: (one.is_best, one.good))),
    )


def _y(at: int) -> float:
    return _TOP + at * _ROW


def _axis(at: int, axis: Axis, left: float, scale: Scale) -> Iterator[Node]:
    y = _y(at)
    name = fitted(axis.name, left - 6)
    yield label(name, left - 2, y + 4, anchor="end", kind="row", whole=axis.name)
    yield tag("line", x1=scale.start, x2=scale.stop, y1=y, y2=y, class_="grid")
    low, high = fitted(axis.low, _ENDS - 6, 11), fitted(axis.high, _ENDS - 6, 11)
    yield label(low, scale.start - 6, y + 4, anchor="end", kind="tick", whole=axis.low)
    yield label(high, scale.stop + 6, y + 4, kind="tick", whole=axis.high)


def _path(path: Path, scale: Scale) -> Node:
    points = " ".join(f"{scale(x):.1f},{_y(at):.1f}" for at, x in enumerate(path.places))
    kind = "path best" if path.is_best else "path"
    opacity = None if path.is_best else 0.08 + 0.5 * path.good**2
    told = tag("title", path.name)
    return tag("polyline", told, points=points, class_=kind, stroke_opacity=opacity)
