"""What there is to see in the trials of a search, as lines and dots for any kind of file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergepipe.search.loop import front_of
from mergepipe.search.space import Choice, Gene, Value
from mergepipe.search.study import Trial

__all__ = ["Axis", "Chart", "Dot", "Line", "charts", "importances"]

_TICKS = 4
_MOST_BARS = 20


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows, from `low` to `high`."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points; `shade` from 0, faint, to 1."""

    points: tuple[tuple[float, float], ...]
    shade: float = 1.0
    width: float = 1.5


@dataclass(frozen=True, slots=True)
class Dot:
    """A trial; a strong one is of the front, or the best so far."""

    x: float
    y: float
    name: str
    is_strong: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture: axes, lines, dots; `kind` and the loss's place say which."""

    kind: str
    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()


def charts(genes: Sequence[Gene], names: Sequence[str], trials: Sequence[Trial]) -> list[Chart]:
    """Give the history, what matters, parallel coordinates and, of two losses, the front."""
    whole = [one for one in trials if one.state == "complete" and one.items is None]
    if not whole:
        return []
    found = [_history(names[at], at, whole) for at in range(len(names))]
    found += [_importance(genes, names[at], at, whole) for at in range(len(names))]
    found.append(_parallel(genes, names[0], whole))
    if len(names) > 1:
        found.append(_front(names, whole))
    return found


def importances(
    genes: Sequence[Gene], losses: Sequence[float], trials: Sequence[Trial]
) -> list[float]:
    """Give how much each gene's values go with the loss, 0 to 1.

    Of numbers, the size of Spearman's rank correlation; of choices, the root of the share of the
    ranks' variance that lies between them.
    """
    ranks = _ranks(np.array(losses, np.float64))
    found = []
    for at, gene in enumerate(genes):
        values = [trial.values[at] for trial in trials]
        if isinstance(gene, Choice):
            found.append(_between(values, ranks))
        else:
            mine = _ranks(np.array(values, np.float64))
            spread = float(mine.std() * ranks.std())
            cross = float(((mine - mine.mean()) * (ranks - ranks.mean())).mean())
            found.append(abs(cross) / spread if spread else 0.0)
    return found


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give ranks, the mean of them to equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks


def _between(values: Sequence[Value], ranks: NDArray[np.float64]) -> float:
    total = float(((ranks - ranks.mean()) ** 2).sum())
    groups = [ranks[[one == value for one in values]] for value in dict.fromkeys(values)]
    between = sum(len(group) * (float(group.mean()) - float(ranks.mean())) ** 2 for group in groups)
    return math.sqrt(between / total) if total else 0.0


def _history(name: str, at: int, trials: Sequence[Trial]) -> Chart:
    losses = [trial.losses[at] for trial in trials]
    best = np.minimum.accumulate(losses)
    steps: list[tuple[float, float]] = []
    for trial, value in zip(trials, best, strict=True):
        steps += [(trial.number, steps[-1][1] if steps else float(value))]
        steps += [(trial.number, float(value))]
    dots = tuple(
        Dot(trial.number, loss, f"trial {trial.number}: {loss:.5g}", loss <= least)
        for trial, loss, least in zip(trials, losses, best, strict=True)
    )
    x = _axis("trial", [float(trial.number) for trial in trials])
    return Chart(
        "history", f"history of {name}", x, _axis(name, losses), (Line(tuple(steps)),), dots
    )


def _importance(genes: Sequence[Gene], name: str, at: int, trials: Sequence[Trial]) -> Chart:
    found = importances(genes, [trial.losses[at] for trial in trials], trials)
    order = sorted(range(len(genes)), key=lambda i: -found[i])[:_MOST_BARS]
    lines = tuple(Line(((0.0, -row), (found[i], -row)), width=8.0) for row, i in enumerate(order))
    ticks = tuple((-float(row), _short(genes[i].name)) for row, i in enumerate(order))
    y = Axis("", -len(order) + 0.5, 0.5, ticks)
    x = Axis("rank correlation, 0 to 1", 0, 1, ((0, "0"), (0.5, "0.5"), (1, "1")))
    return Chart("importance", f"what goes with {name}", x, y, lines)


def _parallel(genes: Sequence[Gene], name: str, trials: Sequence[Trial]) -> Chart:
    ranks = _ranks(np.array([trial.losses[0] for trial in trials]))
    lines = []
    for at in np.argsort(-ranks):
        trial = trials[int(at)]
        points = [
            (float(i), _share(gene, trial.values[i])) for i, gene in enumerate(genes[:_MOST_BARS])
        ]
        if len(points) == 1:
            points.append((1.0, points[0][1]))
        shade = 1 - (float(ranks[at]) - 1) / max(1, len(trials) - 1)
        lines.append(Line(tuple(points), shade=shade, width=0.5 + 1.5 * shade))
    count = max(2, min(len(genes), _MOST_BARS))
    ticks = tuple((float(i), _short(gene.name)) for i, gene in enumerate(genes[:_MOST_BARS]))
    x = Axis("", -0.2, count - 0.8, ticks)
    y = Axis("place in its range", 0, 1, ((0, "low"), (1, "high")))
    return Chart("parallel", f"values; the darker, the smaller {name}", x, y, tuple(lines))


def _share(gene: Gene, value: Value) -> float:
    if isinstance(gene, Choice):
        return gene.values.index(value) / (len(gene.values) - 1)
    low, high, here = gene.low, gene.high, float(value)
    if gene.is_log:
        low, high, here = math.log(low), math.log(high), math.log(here)
    return (here - low) / (high - low)


def _front(names: Sequence[str], trials: Sequence[Trial]) -> Chart:
    front = sorted(front_of(trials), key=lambda one: one.losses[:2])
    strong = {one.number for one in front}
    dots = tuple(
        Dot(one.losses[0], one.losses[1], f"trial {one.number}", one.number in strong)
        for one in trials
    )
    line = Line(tuple((one.losses[0], one.losses[1]) for one in front), shade=0.5)
    x = _axis(names[0], [one.losses[0] for one in trials])
    y = _axis(names[1], [one.losses[1] for one in trials])
    return Chart("front", f"{names[0]} against {names[1]}", x, y, (line,), dots)


def _axis(label: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    margin = (high - low) / 20 or 0.5
    low, high = low - margin, high + margin
    ticks = tuple(_ticks(low, high))
    return Axis(label, low, high, ticks)


def _ticks(low: float, high: float) -> Iterator[tuple[float, str]]:
    """Give round numbers between."""
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    value = math.ceil(low / step) * step
    while value <= high:
        yield value, f"{value:.6g}" if abs(value) > step / 2 else "0"
        value += step


def _short(name: str) -> str:
    """Leave out of a gene's name what stands before every other's."""
    return name.removeprefix("merge.").removeprefix("models.")
