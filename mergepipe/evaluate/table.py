"""Scores as a table, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mergepipe.errors import printable
from mergepipe.evaluate.cost import cost_lines
from mergepipe.evaluate.difference import Difference
from mergepipe.evaluate.grid import Cell, Grid, lay_out, lay_out_retention
from mergepipe.evaluate.running import Failure
from mergepipe.evaluate.score import ScoreRow

__all__ = ["markdown", "table"]


def table(
    rows: Sequence[ScoreRow],
    differences: Sequence[Difference] = (),
    failures: Sequence[Failure] = (),
    *,
    errors: bool = False,
) -> Group:
    """Lay out the main metrics for a terminal: see `lay_out`."""
    grid = lay_out(rows, differences, failures, errors=errors)
    kept, costs = lay_out_retention(rows), cost_lines(rows)
    parts = [_table(grid)] if kept is None else [_table(grid), Group(""), _table(kept)]
    return Group(*parts, *(Text(printable(line)) for line in costs))


def _table(grid: Grid) -> Group:
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    found.add_column("model", no_wrap=True)
    for heading, unit in grid.headings:
        title = Text(f"{printable(heading)}\n{printable(unit)}")
        found.add_column(title, justify="right", overflow="fold")
    marked = [
        any(line[at].mark for line in grid.lines.values()) for at in range(len(grid.headings))
    ]
    for model, cells in grid.lines.items():
        shown = [_shown(cell, room) for cell, room in zip(cells, marked, strict=True)]
        found.add_row(Text(printable(model)), *shown)
    return Group(found, *(Text(printable(line)) for line in grid.caption))


def _shown(cell: Cell, room: bool) -> Text:
    """Give a cell with room for a mark where its column has one."""
    text = Text(cell.text, style="bold" if cell.is_best else "")
    return text.append(f" {cell.mark or ' '}", style="not bold") if room else text


def markdown(
    rows: Sequence[ScoreRow],
    differences: Sequence[Difference] = (),
    failures: Sequence[Failure] = (),
    *,
    errors: bool = False,
) -> str:
    """Lay out the same table as Markdown."""
    grid = lay_out(rows, differences, failures, errors=errors)
    kept = lay_out_retention(rows)
    parts = [_markdown(grid), *([] if kept is None else [_markdown(kept)])]
    costs = "".join(f"{_escaped(line)}\n" for line in cost_lines(rows))
    return "\n".join([*parts, *([costs] if costs else [])])


def _markdown(grid: Grid) -> str:
    lines = [
        ["model", *(f"{heading} ({unit})" if unit else heading for heading, unit in grid.headings)],
        ["---", *("---:" for _ in grid.headings)],
    ]
    for model, cells in grid.lines.items():
        lines.append([model, *map(_marked, cells)])
    body = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    caption = "  \n".join(map(printable, grid.caption))
    return f"{body}\n\n{caption}\n"


def _escaped(cell: str) -> str:
    return printable(cell).replace("|", r"\|")


def _marked(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.is_best else cell.text
    return f"{text} {cell.mark}".rstrip()
