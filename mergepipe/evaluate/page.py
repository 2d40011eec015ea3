"""Scores as one small HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from mergepipe.errors import printable
from mergepipe.evaluate.difference import Difference
from mergepipe.evaluate.grid import Cell, Grid, lay_out
from mergepipe.evaluate.running import Failure
from mergepipe.evaluate.score import ScoreRow

__all__ = ["page"]

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:1rem 0}"
    "th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #8884}"
    "th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #888}"
    "small{font-weight:normal;color:#777}.better{color:#087f23}.worse{color:#b3261e}"
    ":root{color-scheme:light dark}"
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
        *_grid(lay_out(rows, differences, failures, errors=True)),
        *_differences(differences),
        *_failures(failures),
    ]
    return "\n".join(parts) + "\n"


def _grid(grid: Grid) -> Iterator[str]:
    heads = "".join(
        f"<th>{_safe(name)}<br><small>{_safe(unit)}</small>" for name, unit in grid.headings
    )
    yield f"<table><thead><tr><th>model{heads}</thead>"
    for model, cells in grid.lines.items():
        yield f"<tr><th scope=row>{_safe(model)}{''.join(map(_cell, cells))}"
    yield "</table>"
    yield f"<p>{'<br>'.join(map(_safe, grid.caption))} ± is the standard error.</p>"


def _cell(cell: Cell) -> str:
    text = f"<b>{_safe(cell.text)}</b>" if cell.is_best else _safe(cell.text)
    mark = f" <b class={_CLASSES[cell.mark]}>{cell.mark}</b>" if cell.mark else ""
    return f"<td>{text}{mark}"


def _differences(differences: Sequence[Difference]) -> Iterator[str]:
    if not differences:
        return
    yield f"<h2>Differences from {_safe(differences[0].reference)}</h2><table><thead>"
    heads = (
        "model",
        "evaluation",
        "difference",
        "95 %",
        "p",
        "corrected",
        "items",
        "better, worse",
    )
    yield f"<tr>{''.join(f'<th>{head}' for head in heads)}</thead>"
    for one in differences:
        kind = f" class={one.verdict}" if one.verdict else ""
        cells = (
            _safe(one.evaluation),
            f"<span{kind}>{one.value:+.4f}</span>",
            f"{one.low:+.4f} to {one.high:+.4f}",
            f"{one.p:.2g}",
            f"{one.p_corrected:.2g}",
            str(one.n),
            f"{one.better}, {one.worse}",
        )
        yield f"<tr><th scope=row>{_safe(one.model)}{''.join(f'<td>{cell}' for cell in cells)}"
    yield "</table>"


def _failures(failures: Sequence[Failure]) -> Iterator[str]:
    if failures:
        listed = "".join(f"<li>{_safe(one.problem)}" for one in failures)
        yield f"<h2>Failed</h2><ul>{listed}</ul>"


def _safe(text: object) -> str:
    return escape(printable(text))
