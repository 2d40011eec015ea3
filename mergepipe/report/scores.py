"""The result: scores with their intervals, which differences are real, and what that says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from mergepipe.evaluate import Difference, Failure, Metric, ScoreRow, differences, interval
from mergepipe.evaluate.grid import Cell, Grid, lay_out, lay_out_retention
from mergepipe.evaluate.retention import RETENTION
from mergepipe.evaluate.statistics import average_error
from mergepipe.report.charts.intervals import Row, intervals
from mergepipe.report.contents import Contents
from mergepipe.report.markup import Child, Node, tag
from mergepipe.report.parts import card, fold, grid, note, table

__all__ = ["result"]

_LEAST_P = 1e-12
_Z = 1.959964  # of 95 %
_WAYS = {True: "higher is better", False: "lower is better", None: ""}
_CLASSES = {"+": "better", "−": "worse"}


@dataclass(frozen=True, slots=True)
class _Chart:
    """The main metric of one evaluation, or the mean of several, by model."""

    name: str
    unit: str
    higher_is_better: bool | None  # None: neither way is better
    rows: Mapping[str, tuple[float, tuple[float, float] | None]]
    of: Sequence[str] = ()  # the evaluations of a mean


def result(contents: Contents) -> Iterator[Child]:
    """Give the section."""
    scores = contents.scores
    if scores is None or not (scores.rows or scores.failures):
        yield note("This run has no scores: its recipe has no ", tag("code", "evaluate:"), ".")
        return
    rows = [row for row in scores.rows if row.evaluator != RETENTION]
    found = _compared(contents, rows)
    charts = _charts(rows)
    yield tag("p", _summary(contents, charts, found), class_="lead")
    yield grid((_card(contents, one, found, scores.failures) for one in charts), "three")
    yield _key(contents, found, charts)
    yield from _table(lay_out(rows, found, scores.failures, errors=True), contents)
    yield tag("p", "The best of each column is bold; ± is the standard error.", class_="small")
    kept = lay_out_retention(scores.rows)
    if kept is not None:
        yield tag("h3", "What is kept, and what is lost")
        yield from _table(kept, contents)
        yield tag("p", kept.caption, class_="small")
    yield from _all_differences(found)
    yield from _failures(scores.failures)


def _compared(contents: Contents, rows: Sequence[ScoreRow]) -> tuple[Difference, ...]:
    whole = [row for row in rows if math.isfinite(row.value)]
    return differences(whole, contents.base) if contents.base is not None else ()


def _mains(rows: Sequence[ScoreRow]) -> dict[str, dict[str, ScoreRow]]:
    """Give the main metric's row by evaluation and model."""
    found: dict[str, dict[str, ScoreRow]] = {}
    for row in rows:
        found.setdefault(row.evaluation, {}).setdefault(row.model, row)
    return found


def _charts(rows: Sequence[ScoreRow]) -> list[_Chart]:
    """Give the averages of evaluations that share a metric, then every evaluation."""
    mains = _mains(rows)
    shared: dict[tuple[str, str], list[str]] = {}
    for name, by_model in mains.items():
        first = next(iter(by_model.values()))
        shared.setdefault((first.evaluator, first.metric), []).append(name)
    averages = [_average(names, mains) for names in shared.values() if len(names) > 1]
    return [*averages, *(_chart(name, by_model) for name, by_model in mains.items())]


def _chart(name: str, by_model: Mapping[str, ScoreRow]) -> _Chart:
    first = next(iter(by_model.values()))
    rows = {model: (row.value, _interval(row)) for model, row in by_model.items()}
    return _Chart(name, first.unit, first.higher_is_better, rows)


def _interval(row: ScoreRow) -> tuple[float, float] | None:
    metric = Metric(row.value, row.higher_is_better, row.n, row.unit, row.stderr, row.formula)
    if not math.isfinite(row.value):
        return None
    found = interval(metric, row.items)
    if found is None and row.stderr is not None:
        return row.value - _Z * row.stderr, row.value + _Z * row.stderr
    return found


def _average(names: Sequence[str], mains: Mapping[str, Mapping[str, ScoreRow]]) -> _Chart:
    first = next(iter(mains[names[0]].values()))
    models = [one for one in mains[names[0]] if all(one in mains[name] for name in names)]
    rows = {}
    for model in models:
        mine = [mains[name][model] for name in names]
        value = fmean(row.value for row in mine)
        errors = [row.stderr for row in mine if row.stderr is not None]
        error = _Z * average_error(errors) if len(errors) == len(mine) else None
        rows[model] = (value, None if error is None else (value - error, value + error))
    return _Chart("average", first.unit, first.higher_is_better, rows, tuple(names))


def _summary(
    contents: Contents, charts: Sequence[_Chart], found: Sequence[Difference]
) -> Iterator[Child]:
    """Say in two sentences what the scores say."""
    label = contents.result
    first = next((one for one in charts if one.higher_is_better is not None), None)
    if first is None or label is None or not math.isfinite(first.rows.get(label, (math.nan,))[0]):
        yield "The merge has no score to compare."
        return
    yield from _standing(label, first)
    yield from _against(contents.base, [one for one in found if one.model == label])


def _standing(label: str, chart: _Chart) -> Iterator[Child]:
    """Say where the merge stands among its inputs."""
    value = chart.rows[label][0]
    yield "The merge averages " if chart.of else f"On {chart.name} the merge has "
    yield tag("b", f"{_number(value)} {chart.unit}".rstrip())
    others = {m: v for m, (v, _) in chart.rows.items() if m != label and math.isfinite(v)}
    if not others:
        yield ". "
        return
    choose = max if chart.higher_is_better else min
    best = choose(others, key=others.__getitem__)
    ahead = (value > others[best]) == chart.higher_is_better and value != others[best]
    word = "ahead of" if ahead else "and is not ahead of"
    yield f", {word} the best input ({best}, {_number(others[best])}). "


def _against(base: str | None, mine: Sequence[Difference]) -> Iterator[Child]:
    """Say on what the merge is better or worse than the base, beyond chance."""
    if not mine:
        return
    words: dict[str, list[str]] = {"better": [], "worse": [], "": []}
    for one in mine:
        words[one.verdict or ""].append(one.evaluation)
    real = [f"{word} on {_listed(words[word])}" for word in ("better", "worse") if words[word]]
    if real:
        yield f"Beyond chance it is {' and '.join(real)} than {base}"
    else:
        yield f"No difference from {base} is beyond chance"
    if real and words[""]:
        yield f"; on {_listed(words[''])} the difference is within chance"
    yield "."


def _listed(names: Sequence[str]) -> str:
    if len(names) > 5:  # noqa: PLR2004
        return f"{len(names)} evaluations"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "failed"


def _card(
    contents: Contents, chart: _Chart, found: Sequence[Difference], failures: Sequence[Failure]
) -> Node:
    verdicts = {one.model: one.verdict or "" for one in found if one.evaluation == chart.name}
    rows = [
        Row(
            model,
            value if math.isfinite(value) else None,
            None if bounds is None else bounds[0],
            None if bounds is None else bounds[1],
            kind=_kind(contents, model),
            word="" if chart.of else verdicts.get(model, ""),
        )
        for model, (value, bounds) in chart.rows.items()
    ]
    failed = (one.model for one in failures if one.evaluation == chart.name)
    rows += [Row(model, None, kind=_kind(contents, model)) for model in failed]
    reference = chart.rows.get(contents.base or "", (math.nan, None))[0]
    drawn = intervals(chart.name, rows, reference=reference)
    unit = ", ".join(one for one in (chart.unit, _WAYS[chart.higher_is_better]) if one)
    return card([tag("b", chart.name), " ", tag("span", unit, class_="unit")], drawn)


def _kind(contents: Contents, model: str) -> Literal["strong", "base", "plain"]:
    return "strong" if model == contents.result else "base" if model == contents.base else "plain"


def _key(contents: Contents, found: Sequence[Difference], charts: Sequence[_Chart]) -> Node:
    marks: list[Child] = ["Marks are values, lines their 95 % intervals over items."]
    marks += [f" The average is of {', '.join(one.of)}." for one in charts if one.of][:1]
    if contents.base is not None:
        marks.append(f" The dashed line is {contents.base}.")
    if found:
        marks += [
            " ", tag("b", "+", class_="better"), " better and ", tag("b", "−", class_="worse"),
            f" worse than {contents.base} beyond chance",
            ": paired by item, 95 %, corrected for the number of comparisons (Holm).",
            " Such a difference can be real although the intervals of the two models overlap.",
        ]  # fmt: skip
    elif contents.base is not None:
        marks.append(" These results do not say how scores come from items: no differences.")
    return tag("p", marks, class_="small")


def _table(laid: Grid, contents: Contents) -> Iterator[Node]:
    heads: list[Child] = ["model"]
    heads += [[name, tag("small", unit)] for name, unit in laid.headings]
    lines = [
        [tag("b", model) if model == contents.result else model, *map(_cell, cells)]
        for model, cells in laid.lines.items()
    ]
    yield table(heads, lines, kind="numbers")


def _cell(cell: Cell) -> Node:
    value, plus, error = cell.text.replace("nan", "failed").partition(" ±")
    shown: Child = tag("b", value) if cell.is_best else value
    small = tag("span", plus, error, class_="error") if plus else None
    kind = _CLASSES.get(cell.mark)
    mark = tag("span", cell.mark or "\u2007", class_=f"sign {kind or ''}".strip())
    return tag("td", shown, small, mark)


def _all_differences(found: Sequence[Difference]) -> Iterator[Node]:
    if not found:
        return
    heads = ("model", "evaluation", "difference", "95 %", "p", "corrected", "items", "wins, losses")
    rows = [
        (
            one.model,
            one.evaluation,
            tag("td", _signed(one.value), class_=one.verdict),
            f"{_signed(one.low)} to {_signed(one.high)}",
            _chance(one.p),
            _chance(one.p_corrected),
            str(one.n),
            f"{one.better}, {one.worse}",
        )
        for one in found
    ]
    yield fold(f"All differences from {found[0].reference}", table(heads, rows, kind="numbers"))


def _chance(p: float) -> str:
    return f"{p:.2g}" if p >= _LEAST_P else f"< {_LEAST_P:g}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _failures(failures: Sequence[Failure]) -> Iterator[Node]:
    if failures:
        listed = (tag("li", str(one.problem)) for one in failures)
        yield tag("div", tag("h3", "Failed"), tag("ul", listed), class_="failures")
