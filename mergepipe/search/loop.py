"""The search itself: ask, evaluate, tell, keep; going on exactly where it was cut off.

Candidates are asked for in batches, and a batch is told in the order in which it was asked for, so
that neither the number of workers nor who is done first matters. A search that is run again asks
its optimiser the same, and tells it what is in the study: no candidate is evaluated twice but those
that were under way. A failed candidate is told as bad as the worst so far and the range beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from mergepipe.errors import EnvironmentFault, InputError, Problem, printable
from mergepipe.search.objective import Objective, main_rows
from mergepipe.search.optimizer import Optimizer
from mergepipe.search.pool import Answer, Job
from mergepipe.search.space import Value
from mergepipe.search.study import Study, Trial

__all__ = ["Evaluate", "Loop", "Rules", "best_of", "front_of"]

Evaluate: TypeAlias = Callable[[Sequence[Job]], Iterator[tuple[Job, Answer]]]
Report: TypeAlias = Callable[[Trial], None]


@dataclass(frozen=True)
class Rules:
    """When a search ends, and how candidates are screened.

    `rungs` are how many items of each evaluation a candidate is scored on; after each but the last,
    only the best `keep` of a batch go on. None is all items.
    """

    budget: int
    batch: int
    patience: int | None = None
    max_failed_share: float = 0.5
    rungs: tuple[int | None, ...] = (None,)
    keep: float = 0.5


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Give the trial with the smallest loss on all items, the first of several."""
    whole = [one for one in trials if one.state == "complete" and one.items is None]
    return min(whole, key=lambda one: (one.losses, one.number), default=None)


def front_of(trials: Sequence[Trial]) -> list[Trial]:
    """Give the trials that none is as good as in every loss and better in one."""
    whole = [one for one in trials if one.state == "complete" and one.items is None]
    found: dict[tuple[float, ...], Trial] = {}
    for trial in whole:
        if not any(_dominates(other.losses, trial.losses) for other in whole):
            found.setdefault(trial.losses, trial)
    return list(found.values())


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(x <= y for x, y in zip(one, other, strict=True))


@dataclass
class Loop:
    """One search, by `run`."""

    optimizer: Optimizer
    study: Study
    objective: Objective
    rules: Rules
    evaluate: Evaluate
    report: Report
    trials: list[Trial] = field(default_factory=list)

    def run(self) -> list[Trial]:
        """Give all trials, those of earlier runs too.

        Raises
        ------
        InputError
            if too many candidates failed; if the optimiser does not ask again what it asked.
        EnvironmentFault
            from an evaluation that could not be made through no fault of its candidate.

        """
        stored = {one.number: one for one in self.study.trials()}
        budget = self.rules.budget
        for start in range(0, budget, self.rules.batch):
            numbers = range(start, min(start + self.rules.batch, budget))
            batch = [self._asked(number, stored.get(number)) for number in numbers]
            done = self._evaluated(batch)
            self.trials += done
            for trial in done:
                self.optimizer.tell(self._told(trial))
            self._check_failures()
            if self._is_stalled():
                break
        return self.trials

    def _asked(self, number: int, kept: Trial | None) -> Trial:
        values = self.optimizer.ask()
        if kept is None:
            self.study.begin(number, values)
            return Trial(number, values)
        if kept.values != values:
            what = f"trial {number} is not what the optimiser asks for now"
            fix = "use the versions of nevergrad and numpy that began it, or another folder"
            raise InputError(Problem("search", what, fix))
        return kept

    def _evaluated(self, batch: list[Trial]) -> list[Trial]:
        """Give a batch with what came of it; what was kept is as it was."""
        known: dict[tuple[Value, ...], Trial] = {}
        for trial in (*self.trials, *batch):
            if trial.state != "running" and trial.items is None:
                known.setdefault(trial.values, trial)
        open_: dict[int, Trial] = {}
        for trial in batch:
            if trial.state == "running" and known.setdefault(trial.values, trial) is trial:
                open_[trial.number] = trial
        found = self._screened(open_) if len(self.rules.rungs) > 1 else self._scored(open_)
        done = []
        for trial in batch:
            if trial.state == "running" and trial.number not in found:
                first = known[trial.values]
                first = found.get(first.number, first)
                copy = replace(first, number=trial.number, same_as=first.number, seconds=0.0)
                found[trial.number] = self._kept(replace(copy, merging=0.0))
            done.append(found.get(trial.number, trial))
        return done

    def _scored(self, trials: Mapping[int, Trial]) -> dict[int, Trial]:
        jobs = [Job(one.number, one.values) for one in trials.values()]
        return {
            job.key: self._kept(self._result(trials[job.key], answer))
            for job, answer in self.evaluate(jobs)
        }

    def _kept(self, trial: Trial) -> Trial:
        self.study.finish(trial)
        self.report(trial)
        return trial

    def _screened(self, trials: Mapping[int, Trial]) -> dict[int, Trial]:
        """Score on few items, then the best of them on more; nothing is kept before all is done.

        One that is dropped gets the loss that it had on few items, moved by how much those that
        went on changed, but none below theirs.
        """
        found: dict[int, Trial] = {}
        alive = dict(trials)
        dropped: list[list[Trial]] = []
        for rung in self.rules.rungs:
            jobs = [Job(one.number, one.values, items=rung) for one in alive.values()]
            results = [
                replace(self._result(trials[job.key], answer), items=rung)
                for job, answer in self.evaluate(jobs)
            ]
            before = found
            found = before | {
                one.number: replace(
                    one,
                    seconds=one.seconds + getattr(before.get(one.number), "seconds", 0.0),
                    merging=one.merging + getattr(before.get(one.number), "merging", 0.0),
                )
                for one in results
            }
            if rung is None:
                break
            ranked = sorted(
                (one for one in results if one.state == "complete"),
                key=lambda one: (sum(one.losses), one.number),
            )
            count = max(1, math.ceil(self.rules.keep * len(ranked)))
            dropped.append(ranked)
            alive = {one.number: trials[one.number] for one in ranked[:count]}
            if not alive:
                break
        final = _moved(found, dropped)
        return {number: self._kept(final[number]) for number in trials}

    def _result(self, trial: Trial, answer: Answer) -> Trial:
        """Give a trial with an answer, or as failed."""
        if answer.is_environment:
            fix = "run again to go on; trials that are done are kept"
            raise EnvironmentFault(Problem(f"trial {trial.number}", answer.reason, fix))
        seconds, merging = round(answer.seconds, 3), round(answer.merging, 3)
        timed = replace(trial, seconds=seconds, merging=merging)
        if answer.reason:
            return replace(timed, state="failed", reason=printable(answer.reason, 1000))
        rows = main_rows(answer.rows)
        losses = self.objective.losses(rows, trial.values)
        scores = {name: row.value for name, row in rows.items()}
        if not all(map(math.isfinite, losses)):
            return replace(timed, state="failed", reason=f"its loss is {losses}", scores=scores)
        return replace(timed, state="complete", losses=losses, scores=scores)

    def _told(self, trial: Trial) -> tuple[float, ...]:
        if trial.state == "complete":
            return trial.losses
        columns = list(
            zip(*(one.losses for one in self.trials if one.state == "complete"), strict=True)
        )
        if not columns:
            return (1e6,) * len(self.objective.names)
        return tuple(max(column) + (max(column) - min(column) or 1.0) for column in columns)

    def _check_failures(self) -> None:
        failed = [one for one in self.trials if one.state == "failed"]
        if len(failed) > self.rules.max_failed_share * len(self.trials):
            reasons = "; ".join(dict.fromkeys(one.reason for one in failed[-2:]))
            what = f"{len(failed)} of {len(self.trials)} candidates failed: {reasons}"
            fix = "mend that, and search into another folder"
            raise InputError(Problem("search", what, fix))

    def _is_stalled(self) -> bool:
        """Tell whether as many candidates as `patience` have brought nothing new."""
        if self.rules.patience is None or not self.trials:
            return False
        if len(self.objective.names) > 1:
            newest = max((one.number for one in front_of(self.trials)), default=0)
        else:
            best = best_of(self.trials)
            newest = 0 if best is None else best.number
        return len(self.trials) - 1 - newest >= self.rules.patience


def _moved(found: Mapping[int, Trial], rungs: Sequence[Sequence[Trial]]) -> dict[int, Trial]:
    """Rank what was dropped at a rung behind all that went further."""
    final = dict(found)
    for ranked in reversed(rungs):
        further = [one for one in ranked if final[one.number].items != one.items]
        further = [one for one in further if final[one.number].state == "complete"]
        for one in ranked:
            if not further or final[one.number].items != one.items:
                continue
            columns = range(len(one.losses))
            worst = [max(final[f.number].losses[k] for f in further) for k in columns]
            shift = [
                sum(final[f.number].losses[k] - f.losses[k] for f in further) / len(further)
                for k in columns
            ]
            losses = tuple(max(worst[k], one.losses[k] + shift[k]) for k in columns)
            final[one.number] = replace(one, losses=losses)
    return final
