"""A report as one HTML page that asks for nothing else: heat maps as inline SVG.

Every label is escaped: names of models and tensors come from files of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from mergepipe.errors import printable
from mergepipe.inspect.panels import Panel, panels
from mergepipe.inspect.report import Report

__all__ = ["page"]

_WIDTH, _HEIGHT = 34, 16  # of a cell, in pixels
_CHARACTER = 6.2  # width of one, about
_TILT = 0.64  # sine of the angle of the headings
_NO_NUMBER = "#dddddd"
_HEAD = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; color: #222; background: #fff; }}
main {{ display: flex; flex-wrap: wrap; gap: 2em; }}
figure {{ margin: 0; }}
figcaption {{ font-weight: bold; margin-bottom: .5em; }}
svg text {{ font: 11px sans-serif; fill: #222; }}
</style>
<h1>{title}</h1>
<p>Relative norm: of the change, to that of the base. Cosine: between two changes. Sign conflict:
of the elements that both changed, the share with opposite signs; 0.5 is chance. Grey: no number.
Point at a cell to read it.</p>
<main>
"""


def page(report: Report) -> str:
    """Give the page."""
    title = _text(f"{', '.join(report.labels)} beside {report.base.label}")
    figures = (_figure(panel) for panel in panels(report))
    return "".join((_HEAD.format(title=title), *figures, "</main>\n</html>\n"))


def _text(text: str) -> str:
    return escape(printable(text))


def _figure(panel: Panel) -> str:
    left = 12 + _CHARACTER * max(map(len, panel.rows))
    longest = max(map(len, panel.columns))
    top = 12 + _TILT * _CHARACTER * longest
    width = left + _WIDTH * len(panel.columns) + _CHARACTER * longest
    height = top + _HEIGHT * (len(panel.rows) + 3)
    body = "".join((*_headings(panel, left, top), *_cells(panel, left, top)))
    scale = "".join(_scale(panel, left, top + _HEIGHT * (len(panel.rows) + 1)))
    return (
        f"<figure><figcaption>{_text(panel.title)}</figcaption>\n"
        f'<svg width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{_text(panel.title)}">\n{body}{scale}</svg></figure>\n'
    )


def _headings(panel: Panel, left: float, top: float) -> Iterator[str]:
    for at, column in enumerate(panel.columns):
        place = f"translate({left + _WIDTH * (at + 0.5):.0f} {top - 5:.0f}) rotate(-40)"
        yield f'<text transform="{place}">{_text(column)}</text>\n'
    for at, row in enumerate(panel.rows):
        y = top + _HEIGHT * (at + 0.8)
        yield f'<text x="{left - 5:.0f}" y="{y:.0f}" text-anchor="end">{_text(row)}</text>\n'


def _cells(panel: Panel, left: float, top: float) -> Iterator[str]:
    for i, values in enumerate(panel.values):
        for j, value in enumerate(values):
            shown = "no number" if value is None else f"{value:.4g}"
            name = _text(f"{panel.rows[i]}, {panel.columns[j]}: {shown}")
            yield (
                f'<rect x="{left + _WIDTH * j:.0f}" y="{top + _HEIGHT * i:.0f}" '
                f'width="{_WIDTH - 1}" height="{_HEIGHT - 1}" fill="{_colour(panel, value)}">'
                f"<title>{name}</title></rect>\n"
            )


def _scale(panel: Panel, left: float, top: float) -> Iterator[str]:
    steps = 24
    for at in range(steps):
        value = panel.low + (panel.high - panel.low) * at / (steps - 1)
        x = left + 5 * at
        fill = _colour(panel, value)
        yield f'<rect x="{x:.0f}" y="{top:.0f}" width="5" height="10" fill="{fill}"/>'
    for value, anchor, x in (
        (panel.low, "start", left),
        (panel.high, "end", left + 5 * steps),
    ):
        y = top + 2 * _HEIGHT - 8
        yield f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{value:.3g}</text>\n'


def _colour(panel: Panel, value: float | None) -> str:
    """Mix the colours that the value lies between."""
    if value is None:
        return _NO_NUMBER
    share = 2 * (value - panel.low) / (panel.high - panel.low)
    first = 0 if share < 1 else 1
    part = share - first
    one, other = (bytes.fromhex(colour[1:]) for colour in panel.colours[first : first + 2])
    mixed = bytes(round(x + (y - x) * part) for x, y in zip(one, other, strict=True))
    return f"#{mixed.hex()}"
