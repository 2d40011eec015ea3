"""Scores laid out: models down, evaluations across, the best of each column and what is real."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mergepipe.evaluate.difference import Difference
from mergepipe.evaluate.league import LEAGUE
from mergepipe.evaluate.retention import RETENTION
from mergepipe.evaluate.running import Failure
from mergepipe.evaluate.score import ScoreRow

__all__ = ["Cell", "Grid", "lay_out", "lay_out_retention"]

_MARKS = {"better": "+", "worse": "−", None: ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in one place; `mark` says that it is really better or worse than another."""

    text: str
    is_best: bool = False
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: headings with their units, a line of cells a model, and what to say below it."""

    headings: tuple[tuple[str, str], ...]
    lines: Mapping[str, tuple[Cell, ...]]
    caption: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    unit: str
    higher_is_better: bool | None
    values: Mapping[str, float]  # by model
    errors: Mapping[str, float]
    failed: Collection[str] = ()

    def text(self, model: str, *, errors: bool) -> str:
        if model not in self.values:
            return "failed" if model in self.failed else "–"
        places = 1 if self.unit.startswith("%") else 3
        error = f" ±{self.errors[model]:.{places}f}" if errors and model in self.errors else ""
        return f"{self.values[model]:.{places}f}{error}"

    def best(self) -> str | None:
        """Give the value to show in bold: none where there is nothing to compare, or no better."""
        if self.higher_is_better is None:
            return None
        choose = max if self.higher_is_better else min
        numbers = {m: value for m, value in self.values.items() if not math.isnan(value)}
        differ = len({self.text(model, errors=False) for model in numbers}) > 1
        if not differ:
            return None
        return self.text(choose(numbers, key=numbers.__getitem__), errors=False)


def lay_out(
    rows: Sequence[ScoreRow],
    differences: Sequence[Difference] = (),
    failures: Sequence[Failure] = (),
    *,
    errors: bool = False,
) -> Grid:
    """Lay out the main metric of every evaluation, with standard errors if `errors`.

    Evaluations that share a metric also get their unweighted mean, as `average`.
    """
    rows = [row for row in rows if row.evaluator != RETENTION]
    columns = _columns(rows, failures)
    verdicts = {(one.model, one.evaluation): one.verdict for one in differences}
    models = dict.fromkeys([*(one.model for one in rows), *(one.model for one in failures)])
    bests = [column.best() for column in columns]
    lines = {
        model: tuple(
            Cell(
                column.text(model, errors=errors),
                is_best=best is not None and column.text(model, errors=False) == best,
                mark=_MARKS[verdicts.get((model, column.heading))],
            )
            for column, best in zip(columns, bests, strict=True)
        )
        for model in models
    }
    headings = tuple((column.heading, column.unit) for column in columns)
    caption = (*_caption(columns, differences), *_lossy(rows))
    return Grid(headings, lines, caption)


def lay_out_retention(rows: Sequence[ScoreRow]) -> Grid | None:
    """Lay out what models keep of specialists, and lose of the base; None where none is asked."""
    columns: dict[tuple[str, str], _Column] = {}
    models: dict[str, None] = {}
    for row in rows:
        if row.evaluator == RETENTION:
            models[row.model] = None
            if math.isnan(row.value):  # it was not asked all of it, or that failed
                continue
            column = _Column(row.metric, row.unit, row.higher_is_better, {}, {})
            found = columns.setdefault((row.evaluation, row.metric), column)
            columns[row.evaluation, row.metric] = replace(
                found, values={**found.values, row.model: row.value}
            )
    if not columns:
        return None
    shown = tuple(columns.values())
    bests = [column.best() for column in shown]
    lines = {
        model: tuple(
            Cell(column.text(model, errors=False), column.text(model, errors=False) == best)
            for column, best in zip(shown, bests, strict=True)
        )
        for model in models
    }
    caption = "retained: the mean part of the specialists' scores that is kept"
    if any(evaluation == "forgotten" for evaluation, _ in columns):
        caption += "; forgotten: the mean part of the base's that is lost"
    return Grid(tuple((one.heading, one.unit) for one in shown), lines, (f"{caption}.",))


def _columns(rows: Sequence[ScoreRow], failures: Sequence[Failure]) -> list[_Column]:
    main: dict[str, list[ScoreRow]] = {}
    for row in rows:
        scores = main.setdefault(row.evaluation, [])
        if all(row.model != earlier.model for earlier in scores):
            scores.append(row)
    failed: dict[str, list[str]] = {}
    for failure in failures:
        failed.setdefault(failure.evaluation, []).append(failure.model)
    columns = {name: _column(name, scores, failed.get(name, ())) for name, scores in main.items()}
    columns |= {
        name: _Column(name, "", True, {}, {}, models)
        for name, models in failed.items()
        if name not in columns
    }
    if LEAGUE in (row.evaluator for row in rows):  # which has an average of its own
        return list(columns.values())
    shared: dict[tuple[str, str], list[_Column]] = {}
    for name, scores in main.items():
        shared.setdefault((scores[0].evaluator, scores[0].metric), []).append(columns[name])
    averages = [_average(group) for group in shared.values() if len(group) > 1]
    return [*columns.values(), *averages]


def _column(name: str, scores: Sequence[ScoreRow], failed: Collection[str]) -> _Column:
    values = {row.model: row.value for row in scores}
    errors = {row.model: row.stderr for row in scores if row.stderr is not None}
    return _Column(name, scores[0].unit, scores[0].higher_is_better, values, errors, failed)


def _average(group: Sequence[_Column]) -> _Column:
    models = [model for model in group[0].values if all(model in c.values for c in group)]
    values = {model: fmean(column.values[model] for column in group) for model in models}
    return _Column("average", group[0].unit, group[0].higher_is_better, values, {})


def _lossy(rows: Sequence[ScoreRow]) -> Iterator[str]:
    """Say where a model was scored on other texts than are meant."""
    for (model, evaluation), row in {(one.model, one.evaluation): one for one in rows}.items():
        if row.lossy:
            what = f"{len(row.lossy)} of {row.n} texts of {evaluation}"
            yield f"The tokenizer of {model} cannot express {what} as they are."


def _caption(columns: Sequence[_Column], differences: Sequence[Difference]) -> Iterator[str]:
    better = {
        f"{'higher' if c.higher_is_better else 'lower'} {c.unit}": None
        for c in columns
        if c.unit and c.higher_is_better is not None
    }
    if better:
        yield f"Better: {', '.join(better)}."
    if differences:
        reference = differences[0].reference
        yield f"+ better, − worse than {reference}: 95 %, paired, corrected (Holm)."
