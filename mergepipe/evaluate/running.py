"""One model on one evaluation: from the cache or asked, and whatever comes back held to account."""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

from mergepipe.errors import EnvironmentFault, MergepipeError, Problem, printable
from mergepipe.evaluate.cache import Cache, key_of
from mergepipe.evaluate.context import Context, Part, Split
from mergepipe.evaluate.evaluation import Evaluation
from mergepipe.evaluate.result import Item, Metric, Result, Unscored
from mergepipe.model import Model

__all__ = ["Failure", "ItemFault", "Progress", "Settings", "evaluated"]

# Told the model, the evaluation, and how many of how many requests are answered.
Progress: TypeAlias = Callable[[str, str, int, int], None]
Tell: TypeAlias = Callable[[str], None]


class ItemFault(Exception):
    """What an evaluator raises to say on which item it fails: `ItemFault(id, why)`."""

    def __init__(self, item: str, reason: str) -> None:
        super().__init__(item, reason)
        self.item, self.reason = item, reason


@runtime_checkable
class Keeping(Protocol):
    """A model that need not pay for an answer twice: see `mergepipe.model.api.ApiModel.keep`."""

    def keep(self, answers: Cache | None, *, scope: str) -> None:
        """From now on look there first."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """An evaluation of a model that gave no result."""

    model: str
    evaluation: str
    evaluator: str
    reason: str
    item: str | None = None
    traceback: str = ""
    exit_status: int = 2

    @property
    def problem(self) -> Problem:
        """What the user is told."""
        where = f"{self.evaluation} of {self.model}"
        return Problem(where if self.item is None else f"{where}, item {self.item}", self.reason)


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all evaluations of a run; `part` is that of evaluations with a split."""

    part: Part | None = None
    seed: int = 0
    cache: Cache | None = None
    allowed: frozenset[str] = frozenset()
    progress: Progress | None = None
    tell: Tell | None = None


class _FailedError(Exception):
    """Why there is no result."""

    def __init__(self, reason: str, item: str | None = None, exit_status: int = 2) -> None:
        super().__init__(reason)
        self.reason, self.item, self.exit_status = reason, item, exit_status


def evaluated(model: Model, evaluation: Evaluation, settings: Settings) -> Result | Failure:
    """Give the result of a model, kept or new; what goes wrong becomes a failure.

    Raises
    ------
    EnvironmentFault
        if the cache is damaged.

    """
    evaluator = evaluation.evaluator
    try:
        key = _key(model, evaluation, settings)
        kept = settings.cache.get(key) if key and settings.cache is not None else None
        if kept is not None:
            return replace(kept, cached=True)
        before = model.usage
        answers = settings.cache if key else None
        if isinstance(model, Keeping):
            model.keep(answers, scope=model.fingerprint if key else "")
        result = _asked(model, evaluation, settings, answers)
        _check(result, evaluation.max_error_rate)
        result = replace(result, usage=model.usage - before)
    except _FailedError as failed:
        # Of the evaluator's own error where there is one, else of nobody's.
        cause = failed.__cause__
        lines = traceback.format_exception(cause) if cause is not None else []
        return Failure(
            model.name,
            evaluation.name,
            evaluator.name,
            failed.reason,
            failed.item,
            "".join(lines),
            failed.exit_status,
        )
    if key and settings.cache is not None and not result.unscored:
        _store(settings.cache, key, result, settings.tell)
    return result


def _key(model: Model, evaluation: Evaluation, settings: Settings) -> str:
    if settings.cache is None:
        return ""
    split, part = _selected(evaluation, settings)
    chosen = [None if split is None else [split.search, split.holdout, split.seed], part]
    try:
        return key_of(
            evaluation.evaluator,
            evaluation.parameters,
            evaluation.folder,
            [*chosen, evaluation.limit, settings.seed],
            fingerprint=model.fingerprint,
        )
    except OSError as error:
        raise _FailedError(str(error)) from error
    except MergepipeError as error:  # a server that cannot be asked what it is
        raise _FailedError(str(error), exit_status=error.exit_status) from error


def _selected(evaluation: Evaluation, settings: Settings) -> tuple[Split | None, Part | None]:
    """Give the split and the part; neither where the items are not divided."""
    if evaluation.split is None or settings.part is None:
        return None, None
    return evaluation.split, settings.part


def _asked(
    model: Model, evaluation: Evaluation, settings: Settings, answers: Cache | None
) -> Result:
    evaluator = evaluation.evaluator
    if evaluator.permission is not None and evaluator.permission not in settings.allowed:
        raise _FailedError(f"{evaluator.name} needs --allow-{evaluator.permission}")
    split, part = _selected(evaluation, settings)
    progress = settings.progress
    context = Context(
        evaluation.parameters,
        settings.seed,
        evaluation.folder,
        evaluation.limit,
        split,
        part,
        None if progress is None else lambda *told: progress(model.name, evaluation.name, *told),
        answers,
    )
    try:
        _check_abilities(model, evaluation)
        return evaluator.evaluate(model, context)
    except _FailedError:
        raise
    except ItemFault as fault:
        raise _FailedError(fault.reason, fault.item) from fault
    except MergepipeError as error:
        raise _FailedError(str(error), exit_status=error.exit_status) from error
    except (Exception, SystemExit) as error:  # whatever an evaluator's code raises
        reason = f"{type(error).__name__}: {printable(error, 500)}"
        raise _FailedError(f"the evaluator failed: {reason}") from error


def _check_abilities(model: Model, evaluation: Evaluation) -> None:
    evaluator, able = evaluation.evaluator, model.abilities
    missing = sorted(evaluator.needs - able)
    if missing:
        what = f"{evaluator.name} needs a model that can do {', '.join(missing)}"
        raise _FailedError(f"{what}; this one can do {', '.join(sorted(able)) or 'nothing'}")


def _store(cache: Cache, key: str, result: Result, tell: Tell | None) -> None:
    """Keep a result; that it cannot be kept is no reason to lose it."""
    try:
        cache.put(key, result)
    except EnvironmentFault as fault:
        if tell is not None:
            tell(f"warning: a result is not kept: {fault}")


def _check(result: object, max_error_rate: float) -> None:
    """Refuse what is no result, whatever an evaluator returns."""
    if not isinstance(result, Result):
        raise _FailedError(f"the evaluator gave {_shown(result)}, not a Result")
    if not isinstance(result.metrics, Mapping) or not result.metrics:
        raise _FailedError("the evaluator gave no metric")
    for name, metric in result.metrics.items():
        _check_metric(name, metric)
    for item in result.items:
        _check_item(item)
    ids = Counter([*(one.id for one in result.items), *(one.id for one in result.unscored)])
    twice = next((one for one, count in ids.items() if count > 1), None)
    if twice is not None:
        raise _FailedError("the evaluator gave two items of this id", twice)
    _check_formulas(result)
    _check_unscored(result.unscored, len(ids), max_error_rate)


def _check_metric(name: object, metric: object) -> None:
    if not isinstance(name, str) or not isinstance(metric, Metric):
        raise _FailedError(f"the evaluator gave {_shown(metric)} as {_shown(name)}, not a Metric")
    if not _is_number(metric.value):
        raise _FailedError(f"{printable(name, 100)} is {_shown(metric.value)}, not a finite number")
    if metric.stderr is not None and (not _is_number(metric.stderr) or metric.stderr < 0):
        raise _FailedError(f"the stderr of {printable(name, 100)} is {_shown(metric.stderr)}")
    if type(metric.n) is not int or not isinstance(metric.higher_is_better, bool | None):
        raise _FailedError(f"{printable(name, 100)} says no n, or not which way is up")


def _check_item(item: object) -> None:
    if not isinstance(item, Item) or not isinstance(item.id, str):
        raise _FailedError(f"the evaluator gave {_shown(item)} as an item")
    for name, value in item.values.items():
        if type(value) is not bool and not _is_number(value):
            raise _FailedError(f"{printable(name, 100)} is {_shown(value)}", item.id)


def _check_formulas(result: Result) -> None:
    for name, metric in result.metrics.items():
        if metric.formula is None:
            continue
        keys = {metric.formula.numerator, metric.formula.denominator} - {None}
        for item in result.items:
            if not keys <= item.values.keys():
                what = f"{printable(name, 100)} is made of {', '.join(sorted(map(str, keys)))}"
                raise _FailedError(f"{what}, which it does not have", item.id)


def _check_unscored(unscored: tuple[Unscored, ...], count: int, most: float) -> None:
    if count and len(unscored) / count > most:
        reasons = Counter(printable(one.reason, 200) for one in unscored)
        ((reason, _),) = reasons.most_common(1)
        what = f"{len(unscored)} of {count} items could not be scored (max_error_rate is {most:g})"
        raise _FailedError(f"{what}, mostly: {reason}", unscored[0].id)


def _is_number(value: object) -> bool:
    """Tell a finite number; `True` is none."""
    return isinstance(value, float | int) and type(value) is not bool and math.isfinite(value)


def _shown(value: object) -> str:
    return f"{printable(repr(value), 60)} ({type(value).__name__})"
