"""Parts of a page that several sections have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mergepipe.report.markup import Child, Node, tag

__all__ = ["card", "facts", "fold", "grid", "note", "size", "table", "time"]

_MINUTE, _HOUR = 60, 3600


def card(title: Child, chart: Child, caption: Child = None) -> Node:
    """Give a chart with its heading and a line below."""
    below = tag("p", caption, class_="small") if caption else None
    return tag("figure", tag("figcaption", title), chart, below)


def grid(cards: Iterable[Child], kind: str = "two") -> Node:
    """Lay cards out side by side where there is room."""
    return tag("div", cards, class_=f"cards {kind}")


def table(
    heads: Sequence[Child], rows: Iterable[Sequence[Child]], *, kind: str | None = None
) -> Node:
    """Give a table; rows begin with their headings. It scrolls, so that the page does not."""
    body = (tag("tr", tag("th", row[0], scope="row"), (cell(x) for x in row[1:])) for row in rows)
    head = tag("thead", tag("tr", (tag("th", one, scope="col") for one in heads)))
    whole = tag("table", head, tag("tbody", body), class_=kind)
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label="table")


def cell(child: Child) -> Node:
    """Give a cell; one that is a cell stays as it is."""
    return child if isinstance(child, Node) and child.name == "td" else tag("td", child)


def facts(pairs: Iterable[tuple[str, Child]]) -> Node:
    """Give names and values."""
    return tag("dl", (tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def note(*text: Child) -> Node:
    """Give a quiet paragraph."""
    return tag("p", *text, class_="note")


def fold(summary: str, *inside: Child) -> Node:
    """Give what is shown when it is asked for."""
    return tag("details", tag("summary", summary), *inside)


def size(count: float) -> str:
    """Give a number of bytes.

    >>> size(2_727_272)
    '2.7 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def time(seconds: float) -> str:
    """Give a duration.

    >>> time(0.31), time(75.0), time(7300.0)
    ('0.31 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < _MINUTE:
        if seconds < 0.01:  # noqa: PLR2004
            return "< 0.01 s"
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)} min {int(seconds % _MINUTE)} s"
    return f"{int(seconds // _HOUR)} h {int(seconds % _HOUR // _MINUTE)} min"
