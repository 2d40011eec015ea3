"""How much of its specialists a merge keeps, and how much of its base it forgets.

    retained  = mean over domains of score(merge) / score(specialist of the domain)
    forgotten = 1 − mean over general evaluations of score(merge) / score(base)

as in MergeBench (He et al., 2025, https://arxiv.org/abs/2505.10833). Where lower is better, a rate
r counts as 1 − r, and what is no rate (bits per byte) as the reference's value over the merge's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TypeAlias

from mergepipe.errors import InputError, Problem, did_you_mean
from mergepipe.evaluate.running import Failure
from mergepipe.evaluate.score import ScoreRow

__all__ = ["RETENTION", "Suite", "retention", "share_kept"]

RETENTION = "retention"
Reference: TypeAlias = "str | float"  # the label of a model that is scored too, or its score


@dataclass(frozen=True, slots=True)
class Suite:
    """What the merges are held against: evaluation -> its specialist; evaluation -> the base.

    `rates` are evaluations whose main metric is a share from 0 to 1 of which lower is better.
    """

    domains: Mapping[str, Reference]
    general: Mapping[str, Reference] = field(default_factory=dict)
    rates: Collection[str] = ()


def share_kept(value: float, reference: float, *, higher_is_better: bool, rate: bool) -> float:
    """Give a score as a part of the reference's; NaN where that is nothing.

    >>> share_kept(0.375, 0.5, higher_is_better=True, rate=False)
    0.75
    >>> share_kept(0.625, 0.5, higher_is_better=False, rate=True)  # (1 − 0.625) / (1 − 0.5)
    0.75
    >>> share_kept(2.0, 1.5, higher_is_better=False, rate=False)
    0.75
    """
    if higher_is_better:
        above, below = value, reference
    else:
        above, below = (1 - value, 1 - reference) if rate else (reference, value)
    return above / below if below else 1.0 if above == below else math.nan


def retention(
    rows: Sequence[ScoreRow], suite: Suite, failures: Collection[Failure] = ()
) -> tuple[ScoreRow, ...]:
    """Give each model's rows, then its `retained`, `forgotten` (%) and `average`, as far as known.

    Beside `retained` stands what is kept of each specialist (a metric called after its domain),
    beside `forgotten` what is lost of the base. `average` is the mean score of the domains, rates
    as 1 − r; there is none where a domain's score is lower-is-better and no rate. What failed
    makes the number of its model NaN.

    Raises
    ------
    InputError
        if the suite names an evaluation or a model that was not scored.

    """
    mains = {(row.model, row.evaluation): row for row in reversed(rows)}
    models = tuple(dict.fromkeys(row.model for row in rows))
    scored = {(one.model, one.evaluation) for one in rows}
    asked = scored | {(one.model, one.evaluation) for one in failures}
    _check(suite, {model for model, _ in asked}, {name for _, name in asked})
    return tuple(
        row
        for model in models
        for row in (*(one for one in rows if one.model == model), *_derived(model, mains, suite))
    )


def _check(suite: Suite, models: Collection[str], evaluations: Collection[str]) -> None:
    for name, reference in (*suite.domains.items(), *suite.general.items()):
        if name not in evaluations:
            what = f"no evaluation is named '{name}'{did_you_mean(name, evaluations)}"
            raise InputError(Problem(RETENTION, what))
        if isinstance(reference, str) and reference not in models:
            what = f"{name}: no model is named '{reference}'{did_you_mean(reference, models)}"
            raise InputError(Problem(RETENTION, what))


def _derived(
    model: str, mains: Mapping[tuple[str, str], ScoreRow], suite: Suite
) -> Iterator[ScoreRow]:
    domains, general = (
        {name: _share(model, name, one, mains, suite) for name, one in references.items()}
        for references in (suite.domains, suite.general)
    )
    yield _row(model, "retained", 100 * fmean(domains.values()), "%", len(domains))
    for name, kept in domains.items():
        yield _row(
            model, "retained", 100 * kept, f"% of {_named(suite.domains[name])}", metric=name
        )
    if general:
        lost = 100 * (1 - fmean(general.values()))
        yield _row(model, "forgotten", lost, "%", len(general), up=False)
    for name, kept in general.items():
        unit = f"% below {_named(suite.general[name])}"
        yield _row(model, "forgotten", 100 * (1 - kept), unit, metric=name, up=False)
    scores = [_oriented(mains.get((model, name)), name in suite.rates) for name in suite.domains]
    if all(score is not None for score in scores):
        known = [score for score in scores if score is not None]
        yield _row(model, "average", fmean(known), "average", len(known))


def _named(reference: Reference) -> str:
    return reference if isinstance(reference, str) else f"{reference:g}"


def _share(
    model: str,
    evaluation: str,
    reference: Reference,
    mains: Mapping[tuple[str, str], ScoreRow],
    suite: Suite,
) -> float:
    row = mains.get((model, evaluation))
    other = mains.get((reference, evaluation)) if isinstance(reference, str) else None
    if row is None or (other is None and isinstance(reference, str)):  # it failed
        return math.nan
    if row.higher_is_better is None:
        return math.nan
    value = float(reference) if other is None else other.value
    rate = evaluation in suite.rates
    return share_kept(row.value, value, higher_is_better=row.higher_is_better, rate=rate)


def _oriented(row: ScoreRow | None, rate: bool) -> float | None:
    """Give a score of which higher is better; None where it can be none."""
    if row is None:
        return math.nan
    if row.higher_is_better:
        return row.value
    return 1 - row.value if rate and row.higher_is_better is not None else None


def _row(
    model: str,
    evaluation: str,
    value: float,
    unit: str,
    count: int = 1,
    *,
    metric: str = "",
    up: bool = True,
) -> ScoreRow:
    return ScoreRow(model, evaluation, RETENTION, metric or evaluation, value, unit, up, count, ())
