"""What a search found: whether the gain is real, how it went on, what mattered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mergepipe.report.charts.bars import bars
from mergepipe.report.charts.intervals import Row, intervals
from mergepipe.report.charts.parallel import Axis, Path, parallel
from mergepipe.report.charts.scales import shown
from mergepipe.report.charts.scatter import Dot, scatter
from mergepipe.report.contents import Found
from mergepipe.report.markup import Child, Node, tag
from mergepipe.report.parts import card, fold, grid, note, table
from mergepipe.search.charts import importances
from mergepipe.search.space import Choice, Gene, Value
from mergepipe.search.study import Trial
from mergepipe.search.verdict import Gain, Verdict

__all__ = ["search"]

_MOST_AXES = 14
_MOST_PATHS = 120
_MOST_BARS = 16
_MOST_LOSSES = 4  # of which each pair's front is drawn
_MOST_FAILURES = 10


def search(found: Found) -> Iterator[Child]:
    """Give the section."""
    whole = [one for one in found.trials if _is_whole(one)]
    failed = sum(one.state == "failed" for one in found.trials)
    yield tag("p", _summary(found, len(whole), failed), class_="lead")
    if not whole:
        yield note("No trial was scored on all items, so there is nothing to draw.")
        yield from _failures(found.trials)
        return
    if found.verdict is not None:
        yield from _gains(found.verdict)
    yield grid(_charts(found, whole))
    yield from _values(found, whole)
    yield from _failures(found.trials)


def _is_whole(trial: Trial) -> bool:
    return (
        trial.state == "complete"
        and trial.items is None
        and bool(trial.losses)
        and all(math.isfinite(one) for one in trial.losses)
    )


def _summary(found: Found, whole: int, failed: int) -> Iterator[Child]:
    yield f"{len(found.trials):,} candidates of {len(found.genes)} searched values, {whole:,} "
    yield f"scored on all items{f', {failed:,} failed' if failed else ''}. "
    verdict = found.verdict
    if verdict is None:
        yield "The search is not done, so its gain was not measured on held-out items."
        return
    gains = [one for one in verdict.gains if one.evaluation is None]
    for one in gains[:1]:
        word = "" if one.is_real else ", which is not beyond chance"
        yield "The winner’s loss is smaller by "
        yield tag("b", f"{one.value:.4f}")
        yield f" than that of {one.over}{word}, on {_items(verdict, one)}."
    if not gains:
        yield f"The winner, trial {verdict.winner}, has the best ranks on items it never saw."
    if verdict.is_overfit:
        yield tag("b", " It is over-fitted: ", class_="worse")
        yield "the gain was larger on the items that were searched on."


def _items(verdict: Verdict, gain: Gain) -> str:
    kind = "items that were searched on" if verdict.part is None else "items it never saw"
    return f"{gain.n} {kind}"


def _gains(verdict: Verdict) -> Iterator[Child]:
    by_over: dict[str, list[Gain]] = {}
    for one in verdict.gains:
        by_over.setdefault(one.over, []).append(one)
    cards = []
    for over, gains in by_over.items():
        rows = [_gain(one) for one in gains]
        drawn = intervals(f"gain over {over}", rows, reference=0.0, signed=True)
        cards.append(card(tag("b", f"Gain over {over}"), drawn))
    yield grid(cards, "three")
    yield tag(
        "p",
        "How much smaller the winner’s loss is, with 95 % intervals (bootstrap, paired by item); "
        "right of the dashed line is better.",
        class_="small",
    )


def _gain(one: Gain) -> Row:
    is_worse = one.high is not None and one.high < 0
    return Row(
        "all" if one.evaluation is None else one.evaluation,
        one.value,
        one.low,
        one.high,
        kind="strong" if one.evaluation is None else "plain",
        word="better" if one.is_real else "worse" if is_worse else "",
    )


def _charts(found: Found, whole: Sequence[Trial]) -> Iterator[Node]:
    for at, name in enumerate(found.names):
        yield _history(name, at, whole)
    several = range(min(len(found.names), _MOST_LOSSES))
    for x, y in combinations(several, 2):
        yield _front(found.names, x, y, whole)
    for at, name in enumerate(found.names):
        if len(whole) > 2 and found.genes:  # noqa: PLR2004
            yield _importance(found.genes, name, at, whole)
    if found.genes:
        yield _parallel(found, whole)


def _history(name: str, at: int, whole: Sequence[Trial]) -> Node:
    least = math.inf
    dots: list[Dot] = []
    steps: list[tuple[float, float]] = []
    for trial in whole:
        loss = trial.losses[at]
        better = loss < least
        if better and steps:
            steps.append((float(trial.number), least))
        least = min(least, loss)
        if better:
            steps.append((float(trial.number), least))
        dots.append(Dot(trial.number, loss, f"trial {trial.number}: {shown(loss)}", better))
    steps.append((float(whole[-1].number), least))
    drawn = scatter(f"history of {name}", dots, steps, names=("trial", name), clipped=True)
    return card(
        [tag("b", "History"), f" of {name}"],
        drawn,
        None
        if at
        else "Each dot is a candidate, the line the best so far. The worst 3 % are at the top.",
    )


def _front(names: Sequence[str], x: int, y: int, whole: Sequence[Trial]) -> Node:
    places = np.array([(one.losses[x], one.losses[y]) for one in whole])
    strong = _undominated(places)
    dots = [
        Dot(
            one.losses[x], one.losses[y],
            f"trial {one.number}: {shown(one.losses[x])}, {shown(one.losses[y])}", at in strong,
        )
        for at, one in enumerate(whole)
    ]  # fmt: skip
    line = sorted((dot.x, dot.y) for dot in dots if dot.is_strong)
    title = f"{names[x]} against {names[y]}"
    drawn = scatter(title, dots, line, names=(names[x], names[y]))
    return card(
        [tag("b", "Pareto front"), f" of {title}"],
        drawn,
        None
        if (x, y) != (0, 1)
        else "Of the candidates on the line none is better in one loss without being worse in "
        "the other. Lower left is better.",
    )


def _undominated(places: np.ndarray[Any, Any]) -> set[int]:
    """Give the rows of [n, 2] that no other is as good as in both and better in one."""
    found: set[int] = set()
    least = math.inf
    for at in np.lexsort((places[:, 1], places[:, 0])):
        if places[at, 1] < least:
            least = float(places[at, 1])
            found.add(int(at))
    return found


def _importance(genes: Sequence[Gene], name: str, at: int, whole: Sequence[Trial]) -> Node:
    values = importances(genes, [one.losses[at] for one in whole], whole)
    order = sorted(range(len(genes)), key=lambda i: -values[i])[:_MOST_BARS]
    rows = [(short(genes[i].name), values[i], f"{values[i]:.2f}") for i in order]
    drawn = bars(f"what goes with {name}", rows, most=1.0)
    return card(
        [tag("b", "What matters"), f" for {name}"],
        drawn,
        None
        if at
        else "How closely the loss follows each value: the size of the rank correlation, 0 to 1.",
    )


def _parallel(found: Found, whole: Sequence[Trial]) -> Node:
    genes = found.genes[:_MOST_AXES]
    best = _winner(found, whole)
    order = sorted(whole, key=lambda one: (one.losses[0], one.number))
    chosen = order
    if len(order) > _MOST_PATHS:  # the best third, and some of all the others
        keep = _MOST_PATHS // 3
        rest = order[keep:]
        every = len(rest) / (_MOST_PATHS - keep)
        chosen = order[:keep] + [rest[int(i * every)] for i in range(_MOST_PATHS - keep)]
    ranks = {one.number: 1 - at / max(1, len(order) - 1) for at, one in enumerate(order)}
    if all(one.number != best.number for one in chosen):
        chosen = [*chosen, best]
    paths = [
        Path(
            [_place(gene, value) for gene, value in zip(genes, one.values, strict=False)],
            ranks[one.number],
            f"trial {one.number}: {shown(one.losses[0])}",
            one.number == best.number,
        )
        for one in chosen
    ]
    drawn = parallel("searched values", [_axis(gene) for gene in genes], paths)
    left_out = f" {len(chosen)} of {len(whole):,} are drawn." if len(chosen) < len(whole) else ""
    more = f" The first {len(genes)} of {len(found.genes)} values." if genes != found.genes else ""
    return card(
        [tag("b", "Where good candidates lie")],
        drawn,
        "A line is a candidate, from value to value: the better, the stronger; "
        f"the thick one won.{left_out}{more}",
    )


def _winner(found: Found, whole: Sequence[Trial]) -> Trial:
    number = None if found.verdict is None else found.verdict.winner
    least = min(whole, key=lambda one: (one.losses[0], one.number))
    return next((one for one in whole if one.number == number), least)


def _axis(gene: Gene) -> Axis:
    if isinstance(gene, Choice):
        return Axis(short(gene.name), str(gene.values[0]), str(gene.values[-1]))
    return Axis(short(gene.name), shown(gene.low), shown(gene.high))


def _place(gene: Gene, value: Value) -> float:
    if isinstance(gene, Choice):
        at = gene.values.index(value) if value in gene.values else 0
        return at / max(1, len(gene.values) - 1)
    low, high, here = float(gene.low), float(gene.high), float(value)
    if gene.is_log:
        low, high, here = math.log(low), math.log(high), math.log(max(here, gene.low))
    return (here - low) / (high - low) if high > low else 0.5


def _values(found: Found, whole: Sequence[Trial]) -> Iterator[Child]:
    best = _winner(found, whole)
    rows = [
        (
            short(gene.name),
            _value(gene.start),
            _value(value),
            ", ".join(map(str, gene.values))
            if isinstance(gene, Choice)
            else f"{shown(gene.low)} to {shown(gene.high)}{', log' if gene.is_log else ''}",
        )
        for gene, value in zip(found.genes, best.values, strict=False)
    ]
    inside = table(("value", "start", "winner", "searched"), rows, kind="numbers")
    yield fold(f"Values of the winner, trial {best.number}", inside)


def _value(value: Value) -> str:
    return shown(value) if isinstance(value, float) else str(value)


def _failures(trials: Sequence[Trial]) -> Iterator[Child]:
    failed = [one for one in trials if one.state == "failed"]
    if failed:
        listed = [tag("li", f"trial {x.number}: {x.reason}") for x in failed[:_MOST_FAILURES]]
        more = len(failed) - len(listed)
        listed += [tag("li", f"and {more:,} more")] if more else []
        yield fold(f"{len(failed):,} failed candidates", tag("ul", listed))


def short(name: str) -> str:
    """Leave out of a searched value's name what stands before every other's."""
    return name.removeprefix("merge.").removeprefix("models.")
