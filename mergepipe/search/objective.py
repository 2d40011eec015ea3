"""What a search makes small: the losses of a candidate, from the scores of its evaluations.

Which way is up, evaluations say themselves. In plain terms the loss of an evaluation with value m
is m, or −m where higher is better; in relative terms it is what is lost to the best input, whose
value is b: m/b − 1, or 1 − m/b. The loss of a candidate is their weighted mean, and

    penalty · mean |v|

over its numbers v, as LoraHub has it (Huang et al., 2023, https://arxiv.org/abs/2307.13269).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TypeVar

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate import ScoreRow
from mergepipe.evaluate.statistics import Array
from mergepipe.search.space import Value

__all__ = ["Objective", "main_rows", "with_best"]

F = TypeVar("F", float, Array)


@dataclass(frozen=True)
class Objective:
    """Evaluations by name with their weights: one loss, or one for each if `is_front`.

    `best` holds the best input's value of each evaluation where losses are relative to it.
    """

    weights: Mapping[str, float]
    is_front: bool = False
    is_relative: bool = False
    penalty: float = 0.0
    best: Mapping[str, float] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """What the losses are of."""
        return tuple(self.weights) if self.is_front else ("loss",)

    def losses(self, rows: Mapping[str, ScoreRow], values: Sequence[Value]) -> tuple[float, ...]:
        """Give the losses of a candidate of these values, lower is better.

        Raises
        ------
        InputError
            if losses of different units would be added up.

        """
        if self.is_front:
            extra = self._penalty(values)
            return tuple(
                self.loss(name, rows[name].value, rows[name]) + extra for name in self.weights
            )
        return (self.total(rows) + self._penalty(values),)

    def total(self, rows: Mapping[str, ScoreRow]) -> float:
        """Give the weighted mean of the losses of all evaluations, without the penalty."""
        self.check_units(rows)
        parts = [
            weight * self.loss(name, rows[name].value, rows[name])
            for name, weight in self.weights.items()
        ]
        return sum(parts) / sum(self.weights.values())

    def loss(self, name: str, value: F, row: ScoreRow) -> F:
        """Give the loss of one evaluation with this value, or these.

        Raises
        ------
        InputError
            if it measures what is better neither way.

        """
        if row.higher_is_better is None:
            what = f"'{name}' describes a model: neither more nor less of it is better"
            raise InputError(Problem("search", what, "leave it out of `objective`"))
        if not self.is_relative:
            return -value if row.higher_is_better else value
        best = self.best[name]
        return 1 - value / best if row.higher_is_better else value / best - 1

    def _penalty(self, values: Sequence[Value]) -> float:
        numbers = [abs(v) for v in values if isinstance(v, int | float) and type(v) is not bool]
        return self.penalty * fmean(numbers) if self.penalty and numbers else 0.0

    def check_units(self, rows: Mapping[str, ScoreRow]) -> None:
        """Refuse to add up losses of different units."""
        if self.is_front:
            return
        units = {rows[name].unit: name for name in self.weights}
        if len(units) > 1 and not self.is_relative:
            what = f"{', '.join(f'{name} is in {unit}' for unit, name in units.items())}"
            fix = "say `scale: relative`, or name evaluations of one unit"
            raise InputError(Problem("search", f"a mean of different units: {what}", fix))


def main_rows(rows: Sequence[ScoreRow]) -> dict[str, ScoreRow]:
    """Give the row of each evaluation's main metric, which comes first."""
    found: dict[str, ScoreRow] = {}
    for row in rows:
        found.setdefault(row.evaluation, row)
    return found


def with_best(objective: Objective, inputs: Sequence[Mapping[str, ScoreRow]]) -> Objective:
    """Give an objective that is relative to the best of these inputs, evaluation by evaluation.

    Raises
    ------
    InputError
        if the best value of one is 0, to which nothing is relative.

    """
    best = {}
    for name in objective.weights:
        rows = [one[name] for one in inputs]
        choose = max if rows[0].higher_is_better else min
        best[name] = choose(row.value for row in rows)
        if best[name] <= 0:
            what = f"no input has a value above 0 on '{name}', to which others could be relative"
            raise InputError(Problem("search.scale", what, "say `scale: plain`"))
    return replace(objective, best=best)
