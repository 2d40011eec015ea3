"""What `inspect` found, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mergepipe.cli.console import messages, results
from mergepipe.errors import printable
from mergepipe.inspect import (
    THRESHOLDS,
    Advice,
    Case,
    Difference,
    Report,
    Reporter,
    Sums,
    advise,
    as_json,
    model_numbers,
    pair_numbers,
)

__all__ = ["progress", "show"]

_NONE = "–"
_MOST_CASES = 6


@contextmanager
def progress() -> Iterator[Reporter]:
    """Give a function that starts a bar, on a terminal, and returns its `advance(bytes)`."""
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    hidden = not messages.is_terminal
    with Progress(*columns, console=messages, transient=True, disable=hidden) as bars:

        def start(total: int) -> Callable[[int], None]:
            task = bars.add_task("", total=total)
            return lambda count: bars.advance(task, count)

        yield start


def show(report: Report, *, by: str, json_only: bool) -> None:
    """Print a report, for people or as JSON."""
    if json_only:
        print(json.dumps(as_json(report), indent=2, allow_nan=False))  # noqa: T201
        return
    groups = {**(report.kinds if by == "kind" else report.layers), "all": report.total}
    _table(f"models beside {report.base.label}", list(_models(report)))
    _table(f"relative norm (changed) by {by}", list(_by_model(report, by, groups)))
    if report.pairs:
        _table(f"cosine (sign conflict) by {by}", list(_by_pair(report, by, groups)))
    for line in (*_differences(report.differences), *_advice(advise(report))):
        _line(line)


def _line(text: str) -> None:
    results.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows below headings: with a rule on a terminal, else as plain columns."""
    _line(title)
    shown = [[printable(cell) for cell in row] for row in rows]
    if results.is_terminal:
        results.print(_grid(shown))
    else:
        for line in _plain(shown):
            _line(line)
    _line("")


def _grid(rows: Sequence[Sequence[str]]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 1), show_edge=False)
    for at, heading in enumerate(rows[0]):
        grid.add_column(Text(heading), justify="right" if at else "left")
    for row in rows[1:]:
        grid.add_row(*map(Text, row))
    return grid


def _plain(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join(["", first.ljust(widths[0]), *cells])


def _models(report: Report) -> Iterator[list[str]]:
    yield ["", "norm", "relative norm", "cosine to base", "changed", "elements", "dtype"]
    for i, label in enumerate(report.labels):
        one = model_numbers(report.total, i)
        stored = [x.stored for t in report.tensors for x in t.step.inputs if x.label == label]
        changed = _share(one.changed)
        if one.changed_rounded != one.changed:
            changed += f" ({_share(one.changed_rounded)} if rounded alike)"
        dtypes = ", ".join(dict.fromkeys(x.dtype for x in stored))
        norms = (f"{one.norm:.4g}", _number(one.relative_norm), _number(one.cosine_to_base, 4))
        yield [label, *norms, changed, f"{one.elements:,}", dtypes]


def _by_model(report: Report, by: str, groups: Mapping[str, Sums]) -> Iterator[list[str]]:
    yield [by, "tensors", *report.labels]
    for name, sums in groups.items():
        found = (model_numbers(sums, i) for i in range(len(report.models)))
        cells = [f"{_number(one.relative_norm)} ({_share(one.changed)})" for one in found]
        yield [name, str(sums.tensors), *cells]


def _by_pair(report: Report, by: str, groups: Mapping[str, Sums]) -> Iterator[list[str]]:
    labels = report.labels
    yield [by, *(f"{labels[i]} + {labels[j]}" for i, j in report.pairs)]
    for name, sums in groups.items():
        found = (pair_numbers(sums, i, j) for i, j in report.pairs)
        yield [name, *(f"{_number(one.cosine)} ({_share(one.conflict)})" for one in found)]


def _number(value: float | None, digits: int = 3) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f} %"


def _differences(differences: Sequence[Difference]) -> Iterator[str]:
    if differences:
        yield "differences"
        yield from (f"  {one.model}: {one.text}" for one in differences)
        yield ""


def _advice(found: Sequence[Advice]) -> Iterator[str]:
    yield "advice (rules of thumb; the scores of a merge know better)"
    for one in found:
        limits = ", ".join(f"{name} {THRESHOLDS[name].value:g}" for name in one.thresholds)
        yield f"  {_cases(one.cases)}: {one.text}{f' [{limits}]' if limits else ''}"
    if not found:
        yield "  none: no number is beyond a threshold"


def _cases(cases: Sequence[Case]) -> str:
    shown = [" + ".join(case.models) + _numbers(case) for case in cases[:_MOST_CASES]]
    more = f" and {len(cases) - _MOST_CASES} more" if len(cases) > _MOST_CASES else ""
    return ", ".join(shown) + more


def _numbers(case: Case) -> str:
    shown = ", ".join(f"{name} {value:.3g}" for name, value in case.numbers.items())
    return f" ({shown})" if shown else ""
