"""The end of a search: the finalists scored on items that no candidate was chosen by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mergepipe.errors import EnvironmentFault, InputError, Problem
from mergepipe.evaluate import Part, ScoreRow
from mergepipe.search.loop import Evaluate, front_of
from mergepipe.search.objective import Objective, main_rows
from mergepipe.search.pool import Job
from mergepipe.search.space import Value
from mergepipe.search.study import Trial
from mergepipe.search.verdict import Gain, Rows, Verdict, gain, overfit

__all__ = ["finalists_of", "judge", "scored_inputs", "try_out"]

_CHECKED_AGAIN = 3
_MOVED = 1e-5  # of a loss: more than sums in another order come to


def finalists_of(objective: Objective, trials: Sequence[Trial], most: int) -> list[Trial]:
    """Give the best trials by their losses; of a front, its members."""
    whole = [
        one
        for one in trials
        if one.state == "complete" and one.items is None and one.same_as is None
    ]
    if objective.is_front:
        return front_of(whole)
    return sorted(whole, key=lambda one: (one.losses, one.number))[:most]


def scored_inputs(
    evaluate: Evaluate, labels: Sequence[str], part: Part
) -> dict[str, dict[str, ScoreRow]]:
    """Give the main rows of the inputs.

    Raises
    ------
    InputError
        if one cannot be scored.

    """
    jobs = [Job(at, label=label, part=part) for at, label in enumerate(labels)]
    found = _answers(evaluate, jobs)
    return {label: found[at] for at, label in enumerate(labels)}


def try_out(evaluate: Evaluate, objective: Objective, label: str) -> None:
    """Score an input on one item, before a search begins: what fails with it fails with all.

    Raises
    ------
    InputError, EnvironmentFault
        if it cannot be scored, or the scores make no objective.

    """
    rows = _answers(evaluate, [Job(0, label=label, items=1)])[0]
    objective.check_units(rows)


def judge(
    evaluate: Evaluate,
    objective: Objective,
    trials: Sequence[Trial],
    labels: Sequence[str],
    *,
    is_split: bool,
    most: int,
    untuned: str = "the untuned merge",
    also: Sequence[str] = (),
) -> Verdict | None:
    """Choose the winner on held-out items and compare it; None if no trial is complete.

    Without parts (`is_split`) the items that were searched on are all there is. The first trial is
    called `untuned`; the winner is compared with the best of the inputs `labels`, and with each
    input of `also`.
    """
    finalists = finalists_of(objective, trials, most)
    if not finalists:
        return None
    return _Judge(evaluate, objective, is_split, untuned, also).verdict(finalists, trials, labels)


@dataclass
class _Judge:
    evaluate: Evaluate
    objective: Objective
    is_split: bool
    untuned: str
    also: Sequence[str]

    def verdict(
        self, finalists: Sequence[Trial], trials: Sequence[Trial], labels: Sequence[str]
    ) -> Verdict:
        choosing: Part = "holdout" if self.is_split else "search"
        start = next((one for one in trials if one.number == 0 and one.state == "complete"), None)
        rows = self._rows([one.values for one in finalists], choosing)
        inputs = scored_inputs(self.evaluate, labels, choosing)
        winner = self._winner(finalists, rows)
        best_input = self._best_input(inputs)
        reported: Part = "final" if self.is_split else "search"
        final = self._rows([winner.values], reported)[0]
        gains: list[Gain] = []
        gap = None
        if start is not None:
            other = self._rows([start.values], reported)[0]
            gains += self._gains(final, other, self.untuned, reported)
            gap = self._gap(winner, start) if self.is_split else None
        others = scored_inputs(self.evaluate, [best_input, *self.also], reported)
        for label, other in others.items():
            gains += self._gains(final, other, label, reported)
        part = reported if self.is_split else None
        verdict = Verdict(winner.number, part, tuple(gains), best_input)
        if gap is not None:
            verdict = replace(verdict, gap=gap[0], is_overfit=gap[1])
        return replace(verdict, spread=self._spread([winner, *finalists]))

    def _rows(
        self, values: Sequence[tuple[Value, ...]], part: Part, *, fresh: bool = False
    ) -> list[dict[str, ScoreRow]]:
        jobs = [Job(at, one, part=part, fresh=fresh) for at, one in enumerate(values)]
        found = _answers(self.evaluate, jobs)
        return [found[at] for at in range(len(values))]

    def _winner(self, finalists: Sequence[Trial], rows: Sequence[Rows]) -> Trial:
        """Give the best by its loss; of a front, the one with the best ranks on the whole."""
        losses = [
            self.objective.losses(found, one.values)
            for one, found in zip(finalists, rows, strict=True)
        ]
        columns = [sorted(column) for column in zip(*losses, strict=True)]
        ranks = [
            sum(column.index(loss) for column, loss in zip(columns, one, strict=True))
            for one in losses
        ]
        best = min(range(len(finalists)), key=lambda at: (ranks[at], finalists[at].number))
        return finalists[best]

    def _best_input(self, inputs: Mapping[str, Rows]) -> str:
        if not self.objective.is_front:
            return min(inputs, key=lambda label: self.objective.total(inputs[label]))
        ranks = dict.fromkeys(inputs, 0)
        for name in self.objective.weights:
            losses = {
                label: self.objective.loss(name, rows[name].value, rows[name])
                for label, rows in inputs.items()
            }
            for label, loss in losses.items():
                ranks[label] += sorted(losses.values()).index(loss)
        return min(ranks, key=ranks.__getitem__)

    def _gains(self, rows: Rows, other: Rows, over: str, part: Part) -> list[Gain]:
        shown = part if self.is_split else None
        names: list[str | None] = [*self.objective.weights]
        if len(names) == 1:
            names = []
        if not self.objective.is_front:
            names.insert(0, None)
        return [
            gain(self.objective, rows, other, over=over, part=shown, evaluation=name)
            for name in names
        ]

    def _gap(self, winner: Trial, start: Trial) -> tuple[tuple[float, float, float], bool] | None:
        if self.objective.is_front or winner.values == start.values:
            return None
        pair = [winner.values, start.values]
        searched, held = self._rows(pair, "search"), self._rows(pair, "final")
        return overfit(self.objective, (searched[0], searched[1]), (held[0], held[1]))

    def _spread(self, trials: Sequence[Trial]) -> float | None:
        """Evaluate the best few again; give by how much their losses moved if they did."""
        chosen = list({one.number: one for one in trials}.values())[:_CHECKED_AGAIN]
        rows = self._rows([one.values for one in chosen], "search", fresh=True)
        spread = max(
            abs(loss - before) / max(abs(before), 1e-9)
            for one, found in zip(chosen, rows, strict=True)
            for loss, before in zip(
                self.objective.losses(found, one.values), one.losses, strict=True
            )
        )
        return spread if spread > _MOVED else None


def _answers(evaluate: Evaluate, jobs: Sequence[Job]) -> dict[int, dict[str, ScoreRow]]:
    found = {}
    for job, answer in evaluate(jobs):
        if answer.reason:
            where = f"{job.label or 'a finalist'} on the {job.part} items"
            kind = EnvironmentFault if answer.is_environment else InputError
            raise kind(Problem(where, answer.reason))
        found[job.key] = main_rows(answer.rows)
    return found
