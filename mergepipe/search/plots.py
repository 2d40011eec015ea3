"""The trials of a search drawn: SVGs, a page of them that asks for nothing else, or a PNG."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mergepipe.errors import InputError, Problem, printable
from mergepipe.search.charts import Axis, Chart, charts
from mergepipe.search.space import Gene
from mergepipe.search.study import Trial
from mergepipe.write import disk_faults

__all__ = ["draw", "plot_file", "svg_files"]

_WIDTH, _HEIGHT, _LEFT, _BELOW, _ABOVE = 460, 300, 130, 60, 12
_CAPTION = 24
_INK, _STRONG = "#30588c", "#c2410c"
_TEXT = "svg text { font: 11px sans-serif; fill: #222; }"
_HEAD = f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>mergepipe search</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; color: #222; background: #fff; }}
main {{ display: flex; flex-wrap: wrap; gap: 2em; }}
figure {{ margin: 0; }}
figcaption {{ font-weight: bold; margin-bottom: .5em; }}
{_TEXT}
</style>
"""


def plot_file(target: Path) -> Path:
    """Give the file to draw to; its folder is made.

    Raises
    ------
    InputError
        if it is of another kind than HTML or PNG, or what draws it is not installed.
    EnvironmentFault
        if its folder cannot be made.

    """
    suffix = target.suffix.lower()
    if suffix not in {".html", ".png"}:
        raise InputError(
            Problem("--plot", f"cannot draw '{target.name}'", "give FILE.html or .png")
        )
    if suffix == ".png" and find_spec("matplotlib") is None:
        what = "a PNG is drawn by matplotlib, which is not installed"
        fix = 'pip install "mergepipe[plot]", or give FILE.html'
        raise InputError(Problem("--plot", what, fix))
    with disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return target


def draw(file: Path, genes: Sequence[Gene], names: Sequence[str], trials: Sequence[Trial]) -> None:
    """Draw the trials to a file, which is replaced if it exists."""
    found = charts(genes, names, trials)
    drawn = _png(found) if file.suffix.lower() == ".png" else _page(found).encode()
    with disk_faults(file):
        file.write_bytes(drawn)


def svg_files(
    genes: Sequence[Gene], names: Sequence[str], trials: Sequence[Trial]
) -> dict[str, str]:
    """Give each picture as an SVG by its file's name: of several losses, numbered by the loss."""
    found = charts(genes, names, trials)
    counts, texts = Counter(chart.kind for chart in found), {}
    for kind in counts:
        same = [chart for chart in found if chart.kind == kind]
        for at, chart in enumerate(same, 1):
            texts[f"{kind}{f'-{at}' if len(same) > 1 else ''}.svg"] = _svg_file(chart)
    return texts


def _svg_file(chart: Chart) -> str:
    width, height = _size()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + _CAPTION}" '
        f'viewBox="0 {-_CAPTION} {width} {height + _CAPTION}" role="img">\n'
        f"<title>{_text(chart.title)}</title>\n<style>{_TEXT}</style>\n"
        f'<rect y="{-_CAPTION}" width="100%" height="100%" fill="#fff"/>\n'
        f'<text x="{_LEFT}" y="-8" font-weight="bold">{_text(chart.title)}</text>\n'
        f"{''.join((*_axes(chart), *_marks(chart)))}</svg>\n"
    )


def _size() -> tuple[int, int]:
    return _LEFT + _WIDTH + 20, _ABOVE + _HEIGHT + _BELOW


def _page(found: Sequence[Chart]) -> str:
    return "".join((_HEAD, "<main>\n", *map(_figure, found), "</main>\n</html>\n"))


def _text(text: str) -> str:
    return escape(printable(text, 60))


def _figure(chart: Chart) -> str:
    width, height = _size()
    body = "".join((*_axes(chart), *_marks(chart)))
    return (
        f"<figure><figcaption>{_text(chart.title)}</figcaption>\n"
        f'<svg width="{width}" height="{height}" role="img" aria-label="{_text(chart.title)}">\n'
        f"{body}</svg></figure>\n"
    )


def _across(chart: Chart, value: float) -> float:
    return _LEFT + _WIDTH * _place(chart.x, value)


def _down(chart: Chart, value: float) -> float:
    return _ABOVE + _HEIGHT * (1 - _place(chart.y, value))


def _place(axis: Axis, value: float) -> float:
    return (value - axis.low) / (axis.high - axis.low)


def _axes(chart: Chart) -> Iterator[str]:
    foot = _ABOVE + _HEIGHT
    yield (
        f'<rect x="{_LEFT}" y="{_ABOVE}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" '
        f'stroke="#999"/>\n'
    )
    for value, label in chart.x.ticks:
        x = _across(chart, value)
        turn = f"translate({x:.0f} {foot + 14}) rotate({20 if len(label) > 6 else 0})"  # noqa: PLR2004
        yield f'<text transform="{turn}" text-anchor="middle">{_text(label)}</text>\n'
    for value, label in chart.y.ticks:
        y = _down(chart, value) + 4
        yield f'<text x="{_LEFT - 6}" y="{y:.0f}" text-anchor="end">{_text(label)}</text>\n'
    place = f'x="{_LEFT + _WIDTH / 2:.0f}" y="{foot + 50}" text-anchor="middle"'
    yield f"<text {place}>{_text(chart.x.label)}</text>\n"
    yield f'<text x="4" y="{_ABOVE - 2}">{_text(chart.y.label)}</text>\n'


def _marks(chart: Chart) -> Iterator[str]:
    for line in chart.lines:
        points = " ".join(f"{_across(chart, x):.1f},{_down(chart, y):.1f}" for x, y in line.points)
        yield (
            f'<polyline points="{points}" fill="none" stroke="{_INK}" '
            f'stroke-width="{line.width:.1f}" stroke-opacity="{0.1 + 0.9 * line.shade:.2f}"/>\n'
        )
    for dot in chart.dots:
        fill = _STRONG if dot.is_strong else _INK
        yield (
            f'<circle cx="{_across(chart, dot.x):.1f}" cy="{_down(chart, dot.y):.1f}" r="3" '
            f'fill="{fill}"><title>{_text(dot.name)}</title></circle>\n'
        )


def _png(found: Sequence[Chart]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(found) / 2)
    drawn = Figure(figsize=(13, 4 * rows), layout="constrained")
    FigureCanvasAgg(drawn)
    places = drawn.subplots(rows, 2, squeeze=False).flatten()
    for chart, place in zip(found, places, strict=False):
        _plot(chart, place)
    for place in places[len(found) :]:
        place.axis("off")
    out = io.BytesIO()
    drawn.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _plot(chart: Chart, place: Any) -> None:
    for line in chart.lines:
        xs, ys = zip(*line.points, strict=True)
        place.plot(xs, ys, color=_INK, alpha=0.1 + 0.9 * line.shade, linewidth=line.width)
    for strong, colour in ((False, _INK), (True, _STRONG)):
        dots = [dot for dot in chart.dots if dot.is_strong == strong]
        place.scatter([dot.x for dot in dots], [dot.y for dot in dots], s=12, color=colour)
    place.set_title(_plain(chart.title), fontsize=10)
    for axis, label, ticks, limits in (
        (chart.x, place.set_xlabel, place.set_xticks, place.set_xlim),
        (chart.y, place.set_ylabel, place.set_yticks, place.set_ylim),
    ):
        label(_plain(axis.label))
        ticks([value for value, _ in axis.ticks], [_plain(text) for _, text in axis.ticks])
        limits(axis.low, axis.high)
    place.tick_params(axis="x", rotation=20)


def _plain(text: str) -> str:
    """Keep `$` from beginning a formula."""
    return printable(text, 60).replace("$", r"\$")
