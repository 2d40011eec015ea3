"""The scores of models on evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mergepipe.errors import EnvironmentFault, InputError, MergepipeError
from mergepipe.evaluate.evaluation import Evaluation
from mergepipe.evaluate.result import Formula, Item, Result, Unscored
from mergepipe.evaluate.running import Failure, Settings, evaluated
from mergepipe.model import Model, Usage

__all__ = ["ScoreRow", "Scores", "score"]


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One metric of one model on one evaluation; the main metric's row comes first.

    `lossy`, `usage`, `judges` and `cached` are the evaluation's: see `Result`.
    """

    model: str
    evaluation: str
    evaluator: str
    metric: str
    value: float
    unit: str
    higher_is_better: bool | None
    n: int
    items: tuple[Item, ...]
    stderr: float | None = None
    formula: Formula | None = None
    unscored: tuple[Unscored, ...] = ()
    lossy: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    judges: Usage | None = None
    cached: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Scores:
    """What came out, and what did not."""

    rows: tuple[ScoreRow, ...]
    failures: tuple[Failure, ...] = ()

    def __add__(self, other: Scores) -> Scores:
        return Scores(self.rows + other.rows, self.failures + other.failures)

    def error(self) -> MergepipeError | None:
        """Give what to raise once the rows are safe: all failures; None if there are none."""
        if not self.failures:
            return None
        elsewhere = all(one.exit_status == EnvironmentFault.exit_status for one in self.failures)
        kind = EnvironmentFault if elsewhere else InputError
        return kind(*(one.problem for one in self.failures))


def score(
    models: Iterable[Model], evaluations: Sequence[Evaluation], settings: Settings | None = None
) -> Scores:
    """Score each model on each evaluation, model by model: only one need be in memory.

    An evaluation that fails does not keep the others from being made.

    Raises
    ------
    InputError
        if two evaluations, or two models, have one name.
    EnvironmentFault
        if the cache is damaged.

    """
    for name, count in Counter(evaluation.name for evaluation in evaluations).items():
        if count > 1:
            raise InputError(f"two evaluations are named '{name}' (give each its own `name`)")
    rows: list[ScoreRow] = []
    failures: list[Failure] = []
    seen: set[str] = set()
    for model in models:
        if model.name in seen:
            raise InputError(f"two models are named '{model.name}'")
        seen.add(model.name)
        for evaluation in evaluations:
            found = evaluated(model, evaluation, settings or Settings())
            if isinstance(found, Failure):
                failures.append(found)
            else:
                rows += _rows(model.name, evaluation, found)
    return Scores(tuple(rows), tuple(failures))


def _rows(model: str, evaluation: Evaluation, result: Result) -> Iterator[ScoreRow]:
    for name, metric in result.metrics.items():
        yield ScoreRow(
            model=model,
            evaluation=evaluation.name,
            evaluator=evaluation.evaluator.name,
            metric=name,
            value=metric.value,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            n=metric.n,
            items=result.items,
            stderr=metric.stderr,
            formula=metric.formula,
            unscored=result.unscored,
            lossy=result.lossy,
            usage=result.usage,
            judges=result.judges,
            cached=result.cached,
        )
