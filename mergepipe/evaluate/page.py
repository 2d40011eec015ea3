"""Scores as one small HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from mergepipe.errors import printable
from mergepipe.evaluate.cost import costs
from mergepipe.evaluate.difference import Difference
from mergepipe.evaluate.grid import Cell, Grid, lay_out, lay_out_retention
from mergepipe.evaluate.running import Failure
from mergepipe.evaluate.score import ScoreRow

__all__ = ["page"]

_STYLE = (
    ":root{color-scheme:light dark;--better:light-dark(#087f23,#6fd58a);"
    "--worse:light-dark(#b3261e,#ff9c94);--line:light-dark(#0002,#fff3)}"
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    "h1,h2{line-height:1.2}div{overflow-x:auto;margin:1rem 0}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:.3rem .8rem;text-align:right;white-space:nowrap;"
    "border-bottom:1px solid var(--line)}"
    "th:first-child,td.name{text-align:left}"
    "thead th{border-bottom:2px solid var(--line);vertical-align:bottom}"
    "tbody tr:hover{background:var(--line)}small{font-weight:normal;opacity:.7}"
    ".better{color:var(--better)}.worse{color:var(--worse)}.mark{display:inline-block;width:1.2em}"
)
_CLASSES = {"+": "better", "−": "worse"}


def page(
    rows: Sequence[ScoreRow],
    differences: Sequence[Difference] = (),
    failures: Sequence[Failure] = (),
) -> str:
    """Give the table of scores with standard errors, all differences, and what failed."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'><title>Scores</title>",
        f"<style>{_STYLE}</style><h1>Scores</h1>",
        *_grid(lay_out(rows, differences, failures, errors=True), "± is the standard error."),
        *_retention(rows),
        *_differences(differences),
        *_failures(failures),
        *_costs(rows),
    ]
    return "\n".join(parts) + "\n"


def _retention(rows: Sequence[ScoreRow]) -> Iterator[str]:
    grid = lay_out_retention(rows)
    if grid is not None:
        yield "<h2>Kept and forgotten</h2>"
        yield from _grid(grid)


def _grid(grid: Grid, note: str = "") -> Iterator[str]:
    heads = "".join(
        f"<th>{_safe(name)}<br><small>{_safe(unit)}</small>" for name, unit in grid.headings
    )
    yield f"<div><table><thead><tr><th>model{heads}</thead><tbody>"
    marked = [
        any(line[at].mark for line in grid.lines.values()) for at in range(len(grid.headings))
    ]
    for model, cells in grid.lines.items():
        shown = (_cell(cell, room) for cell, room in zip(cells, marked, strict=True))
        yield f"<tr><th scope=row>{_safe(model)}{''.join(shown)}"
    yield "</table></div>"
    yield f"<p>{'<br>'.join(map(_safe, grid.caption))} {note}</p>"


def _cell(cell: Cell, room: bool) -> str:
    """Give a cell with room for a mark where its column has one."""
    text = f"<b>{_safe(cell.text)}</b>" if cell.is_best else _safe(cell.text)
    kind = f" {_CLASSES[cell.mark]}" if cell.mark else ""
    mark = f"<b class='mark{kind}'>{cell.mark}</b>" if room else ""
    return f"<td>{text}{mark}"


def _differences(differences: Sequence[Difference]) -> Iterator[str]:
    if not differences:
        return
    yield f"<h2>Differences from {_safe(differences[0].reference)}</h2><div><table><thead>"
    heads = ("difference", "95 %", "p", "corrected", "items", "better, worse")
    shown = "".join(f"<th>{head}" for head in heads)
    yield f"<tr><th>model<th style='text-align:left'>evaluation{shown}</thead><tbody>"
    for one in differences:
        kind = f" class={one.verdict}" if one.verdict else ""
        cells = (
            f"<span{kind}>{_signed(one.value)}</span>",
            f"{_signed(one.low)} to {_signed(one.high)}",
            f"{one.p:.2g}",
            f"{one.p_corrected:.2g}",
            str(one.n),
            f"{one.better}, {one.worse}",
        )
        numbers = "".join(f"<td>{cell}" for cell in cells)
        yield f"<tr><th scope=row>{_safe(one.model)}<td class=name>{_safe(one.evaluation)}{numbers}"
    yield "</table></div>"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _failures(failures: Sequence[Failure]) -> Iterator[str]:
    if failures:
        listed = "".join(f"<li>{_safe(one.problem)}" for one in failures)
        yield f"<h2>Failed</h2><ul>{listed}</ul>"


def _costs(rows: Sequence[ScoreRow]) -> Iterator[str]:
    heads = ("requests", "tokens read", "written", "seconds", "US $")
    found = costs(rows)
    if not any(one.requests for one in found.values()):
        return
    yield "<h2>Cost</h2><div><table><thead><tr><th>model"
    yield f"{''.join(f'<th>{head}' for head in heads)}</thead><tbody>"
    for name, usage in found.items():
        cells = (
            f"{usage.requests:,}",
            f"{usage.prompt_tokens:,}",
            f"{usage.generated_tokens:,}",
            f"{usage.seconds:.1f}",
            f"{usage.usd:.4f}" if usage.usd else "–",
        )
        yield f"<tr><th scope=row>{_safe(name)}{''.join(f'<td>{cell}' for cell in cells)}"
    yield "</table></div><p>Of what was asked now; results that were kept cost nothing more.</p>"


def _safe(text: object) -> str:
    return escape(printable(text))
