"""Curves over depth: what each model's coefficient is, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mergepipe.report.charts.scales import (
    WIDTH,
    Scale,
    across,
    figure,
    fitted,
    gutter,
    label,
    shown,
    span,
    ticks,
)
from mergepipe.report.markup import Node, tag

__all__ = ["Points", "curves"]

Points = Sequence[tuple[float, float]]
_HEIGHT, _TOP, _FOOT, _LEFT = 170, 12, 34, 42
_DOTS = 40  # points up to which each is marked
_APART = 15  # of the names at the right
_KINDS = 6  # of series; those after them look like the first ones again


def curves(
    title: str, named: Mapping[str, Points], *, over: str, within: tuple[float, float] | None = None
) -> Node:
    """Draw a curve a name, which is written at its end; `over` says what goes to the right."""
    right = gutter(named, 110) + 4
    xs = [x for points in named.values() for x, _ in points]
    ys = [y for points in named.values() for _, y in points]
    low, high = within or span(ys, 0.12)
    across_x = Scale(min(xs), max(*xs, min(xs) + 1), _LEFT, WIDTH - right)
    up = Scale(low, high, _TOP + _HEIGHT, _TOP)
    whole = [x for x in ticks(across_x.low, across_x.high, 6) if x == int(x)]
    said = "; ".join(
        f"{name} from {shown(points[0][1])} to {shown(points[-1][1])}"
        for name, points in named.items()
    )
    return figure(
        title,
        said,
        (WIDTH, _TOP + _HEIGHT + _FOOT),
        _levels(up, low, high, WIDTH - right),
        across(across_x, _TOP, _TOP + _HEIGHT, whole),
        label(over, WIDTH - right, _TOP + _HEIGHT + 30, anchor="end", kind="tick"),
        (_curve(at, one, across_x, up) for at, one in enumerate(named.items())),
        _names(named, up, WIDTH - right + 6, right - 8),
    )


def _levels(up: Scale, low: float, high: float, right: float) -> Iterator[Node]:
    for value in ticks(low, high):
        y = up(value)
        yield tag("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid")
        yield label(shown(value), _LEFT - 6, y + 4, anchor="end", kind="tick")


def _curve(at: int, named: tuple[str, Points], across_x: Scale, up: Scale) -> Iterator[Node]:
    name, points = named
    places = " ".join(f"{across_x(x):.1f},{up(y):.1f}" for x, y in points)
    kind = f"series{at % _KINDS}"
    yield tag("polyline", tag("title", name), points=places, class_=f"curve {kind}")
    if len(points) <= _DOTS:
        for x, y in points:
            told = tag("title", f"{name}, {shown(x)}: {shown(y)}")
            yield tag("circle", told, cx=across_x(x), cy=up(y), r=2.5, class_=f"dot {kind}")


def _names(named: Mapping[str, Points], up: Scale, x: float, width: float) -> Iterator[Node]:
    """Write the names at the ends, none over another."""
    ends = sorted((up(points[-1][1]), at, name) for at, (name, points) in enumerate(named.items()))
    y = float("-inf")
    for end, at, name in ends:
        y = max(end, y + _APART)
        text = fitted(name, width)
        yield label(text, x, y + 4, kind=f"name series{at % _KINDS}", whole=name)
