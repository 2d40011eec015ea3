"""A report as a PNG, drawn by matplotlib."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from mergepipe.errors import printable
from mergepipe.inspect.panels import Panel, panels
from mergepipe.inspect.report import Report

__all__ = ["figure"]

_MOST_ACROSS = 3


def figure(report: Report) -> bytes:
    """Give the heat maps as a PNG file's bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = list(panels(report))
    across = min(len(found), _MOST_ACROSS)
    down = math.ceil(len(found) / across)
    size = (2 + 0.45 * len(report.kinds), 2 + 0.18 * len(report.layers))
    drawn = Figure(figsize=(across * size[0], down * size[1]), layout="constrained")
    FigureCanvasAgg(drawn)
    places = drawn.subplots(down, across, squeeze=False).flatten()
    for panel, place in zip(found, places, strict=False):
        _draw(panel, place)
    for place in places[len(found) :]:
        place.axis("off")
    out = io.BytesIO()
    drawn.savefig(out, format="png", dpi=120)
    return out.getvalue()


def _draw(panel: Panel, place: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("mergepipe", panel.colours)
    place.set_facecolor("#dddddd")  # seen where there is no number
    values = np.array(panel.values, np.float64)  # None becomes NaN
    image = place.imshow(values, colours, vmin=panel.low, vmax=panel.high, aspect="auto")
    columns, rows = list(map(_plain, panel.columns)), list(map(_plain, panel.rows))
    place.set_title(_plain(panel.title), fontsize=9)
    place.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=7)
    place.set_yticks(range(len(rows)), rows, fontsize=7)
    place.figure.colorbar(image, ax=place)


def _plain(text: str) -> str:
    """Keep `$` from beginning a formula."""
    return printable(text).replace("$", r"\$")
