"""Scores as a table: models down, evaluations across, the best of each column in bold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich import box
from rich.table import Table
from rich.text import Text

from mergepipe.errors import printable
from mergepipe.evaluate.league import LEAGUE
from mergepipe.evaluate.score import ScoreRow

__all__ = ["markdown", "table"]


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    unit: str
    higher_is_better: bool
    values: Mapping[str, float]  # by model

    def cell(self, model: str) -> str:
        return f"{self.values[model]:.3f}" if model in self.values else "–"

    def best(self) -> str | None:
        """Give the cell to show in bold: none where there is nothing to compare."""
        choose = max if self.higher_is_better else min
        numbers = {m: value for m, value in self.values.items() if not math.isnan(value)}
        differ = len({self.cell(model) for model in numbers}) > 1
        return self.cell(choose(numbers, key=numbers.__getitem__)) if differ else None


def table(rows: Sequence[ScoreRow]) -> Table:
    """Lay out the main metric of every evaluation for a terminal.

    Evaluations that share a metric also get their unweighted mean, as `average`.
    """
    columns = _columns(rows)
    grid = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption=_caption(columns),
        caption_justify="left",
    )
    grid.add_column("model", no_wrap=True)
    for column in columns:
        grid.add_column(Text(f"{printable(column.heading)}\n{column.unit}"), justify="right")
    bests = [column.best() for column in columns]
    for model in _models(rows):
        cells = [column.cell(model) for column in columns]
        grid.add_row(
            Text(printable(model)),
            *(
                Text(cell, style="bold" if cell == best else "")
                for cell, best in zip(cells, bests, strict=True)
            ),
        )
    return grid


def markdown(rows: Sequence[ScoreRow]) -> str:
    """Lay out the same table as Markdown."""
    columns = _columns(rows)
    bests = [column.best() for column in columns]
    lines = [
        ["model", *(f"{column.heading} ({column.unit})" for column in columns)],
        ["---", *("---:" for _ in columns)],
    ]
    for model in _models(rows):
        cells = [column.cell(model) for column in columns]
        marked = [f"**{c}**" if c == best else c for c, best in zip(cells, bests, strict=True)]
        lines.append([model, *marked])
    escaped = [[printable(cell).replace("|", r"\|") for cell in line] for line in lines]
    body = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
    return f"{body}\n\n{_caption(columns)}\n"


def _models(rows: Iterable[ScoreRow]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.model for row in rows))


def _columns(rows: Sequence[ScoreRow]) -> list[_Column]:
    main: dict[str, list[ScoreRow]] = {}
    for row in rows:
        scores = main.setdefault(row.evaluation, [])
        if all(row.model != earlier.model for earlier in scores):
            scores.append(row)
    columns = {name: _column(name, scores) for name, scores in main.items()}
    shared: dict[tuple[str, str], list[_Column]] = {}
    for name, scores in main.items():
        shared.setdefault((scores[0].evaluator, scores[0].metric), []).append(columns[name])
    if LEAGUE in (row.evaluator for row in rows):  # which has an average of its own
        return list(columns.values())
    averages = [_average(group) for group in shared.values() if len(group) > 1]
    return [*columns.values(), *averages]


def _column(name: str, scores: Sequence[ScoreRow]) -> _Column:
    values = {row.model: row.value for row in scores}
    return _Column(name, scores[0].unit, scores[0].higher_is_better, values)


def _average(group: Sequence[_Column]) -> _Column:
    models = [model for model in group[0].values if all(model in c.values for c in group)]
    values = {model: fmean(column.values[model] for column in group) for model in models}
    return _Column("average", group[0].unit, group[0].higher_is_better, values)


def _caption(columns: Sequence[_Column]) -> str:
    better = {f"{'higher' if c.higher_is_better else 'lower'} {c.unit}": None for c in columns}
    return f"Better: {', '.join(better)}."
