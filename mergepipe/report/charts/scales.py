"""From numbers to places, and to the few words that say them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergepipe.report.markup import Child, Node, tag

__all__ = [
    "FONT",
    "WIDTH",
    "Scale",
    "across",
    "figure",
    "finite",
    "fitted",
    "gutter",
    "label",
    "shown",
    "span",
    "ticks",
    "width_of",
]

WIDTH = 440  # of most charts, in CSS pixels: a phone's, so that texts stay large enough there
FONT = 12
_CHARACTER = 6.6  # width of one at that size, about
_EXACT = 1000
_LOOSE = 0.8  # steps may be so much smaller than asked


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` -> pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Give the place of a value, at an end where it lies beyond."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)


def finite(values: Iterable[float | None]) -> list[float]:
    """Give the values that are numbers."""
    return [one for one in values if one is not None and math.isfinite(one)]


def span(values: Sequence[float], margin: float = 0.05) -> tuple[float, float]:
    """Give a range around values, which is never empty; 0 to 1 of none."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(low) * margin or 0.5
    return low - room, high + room


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Give round numbers between, at most about `most`.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * one for one in (1, 2, 2.5, 5, 10) if power * one >= raw * _LOOSE)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [at * step for at in range(first, last + 1)]


def shown(value: float | None) -> str:
    """Give a number in few characters; one that is none as `–`.

    >>> shown(0.12345), shown(1234567.5), shown(48.0), shown(float("nan"))
    ('0.123', '1.235e+06', '48', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < _EXACT * _EXACT:
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < _EXACT else f"{value:.4g}"


def width_of(text: str, size: float = FONT) -> float:
    """Give how wide a text is, about."""
    return len(text) * _CHARACTER * size / FONT


def fitted(text: str, width: float, size: float = FONT) -> str:
    """Cut a text to a width."""
    most = max(2, int(width / (_CHARACTER * size / FONT)))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def gutter(texts: Iterable[str], most: float, size: float = FONT) -> float:
    """Give the room that labels need, up to `most`."""
    return min(most, max((width_of(one, size) for one in texts), default=0.0) + 10)


def label(
    text: str,
    x: float,
    y: float,
    *,
    anchor: str | None = None,
    kind: str | None = None,
    whole: str | None = None,
) -> Node:
    """Give a text; `whole` is what is said on hovering, where it was cut."""
    told = tag("title", whole) if whole is not None and whole != text else None
    return tag("text", told, text, x=x, y=y, text_anchor=anchor, class_=kind)


def across(scale: Scale, top: float, foot: float, places: Sequence[float]) -> list[Node]:
    """Give the lines and numbers of an axis at the foot of a chart."""
    found = []
    for value in places:
        x = scale(value)
        found.append(tag("line", x1=x, x2=x, y1=top, y2=foot, class_="grid"))
        found.append(label(shown(value), x, foot + 15, anchor="middle", kind="tick"))
    return found


def figure(title: str, said: str, size: tuple[float, float], *marks: Child) -> Node:
    """Give a chart: its title and, for who cannot see it, what it shows."""
    width, height = size
    return tag(
        "svg",
        tag("title", title),
        tag("desc", said),
        *marks,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=f"{title}: {said}",
        width=f"{width:.0f}",
        class_="narrow" if width < WIDTH else None,
    )
