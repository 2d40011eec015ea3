"""Trials kept in an Optuna study: what was asked is known before it is evaluated, and after a kill.

Optuna: Akiba et al., KDD 2019, https://github.com/optuna/optuna. Values, scores and reasons are a
trial's user attributes, so that optuna-dashboard shows them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergepipe.errors import EnvironmentFault, InputError, Problem, printable
from mergepipe.search.space import Choice, Gene, Value, read_gene

__all__ = ["Study", "Trial", "open_study", "read_study", "shown_storage"]

_SETUP = "mergepipe"
_MOST_CHANGES = 5


@dataclass(frozen=True)
class Trial:
    """A candidate: asked for, and then scored or failed for a `reason`.

    `items` is how many of each evaluation's items it was scored on before it was dropped; None for
    all. `same_as` is an earlier trial of the same values, whose scores these are.
    """

    number: int
    values: tuple[Value, ...]
    state: Literal["running", "complete", "failed"] = "running"
    losses: tuple[float, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    merging: float = 0.0  # seconds of these
    items: int | None = None
    same_as: int | None = None


class Study:
    """An open study; `open_study` gives one."""

    def __init__(self, study: Any, genes: Sequence[Gene], where: str) -> None:
        self._study, self._where = study, where
        self._genes = tuple(genes)
        self._ids: dict[int, int] = {}  # of the storage, by number

    def trials(self) -> list[Trial]:
        """Give all trials in the order in which they were asked for."""
        with _faults(self._where):
            found = sorted(self._study.get_trials(deepcopy=False), key=lambda one: one.number)
        self._ids = {one.number: one._trial_id for one in found}  # noqa: SLF001
        return [_trial(one) for one in found]

    def begin(self, number: int, values: Sequence[Value]) -> None:
        """Know that these values were asked for, before they are evaluated."""
        from optuna.trial import TrialState, create_trial

        names = [gene.name for gene in self._genes]
        with _faults(self._where):
            self._study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=dict(zip(names, values, strict=True)),
                    distributions={gene.name: _distribution(gene) for gene in self._genes},
                    user_attrs={"values": list(values)},
                )
            )
            newest = self._study.get_trials(deepcopy=False)[-1]
        if newest.number != number:
            what = f"another search has written trial {newest.number} to this study"
            raise InputError(Problem(self._where, what, "name another storage, or folder"))
        self._ids[number] = newest._trial_id  # noqa: SLF001

    def finish(self, trial: Trial) -> None:
        """Keep what came of a trial that was begun."""
        from optuna.trial import TrialState

        complete = trial.state == "complete"
        shown: dict[str, object] = {
            "scores": dict(trial.scores),
            "reason": trial.reason,
            "seconds": trial.seconds,
            "merging": trial.merging,
            "items": trial.items,
            "same_as": trial.same_as,
        }
        with _faults(self._where):
            storage: Any = self._study._storage  # noqa: SLF001
            for name, value in shown.items():
                if value not in (None, "", {}):
                    storage.set_trial_user_attr(self._ids[trial.number], name, value)
            state = TrialState.COMPLETE if complete else TrialState.FAIL
            losses = list(trial.losses) if complete else None
            storage.set_trial_state_values(self._ids[trial.number], state, losses)

    def agree(self, setup: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what decides the trials, or give what was kept when the study was begun.

        Raises
        ------
        InputError
            naming what is other than it was.

        """
        now = json.loads(json.dumps(dict(setup), default=str))
        with _faults(self._where):
            kept = self._study.user_attrs.get(_SETUP)
            if kept is None:
                self._study.set_user_attr(_SETUP, now)
                return dict(now)
        loose = {"budget", "libraries"}
        found = [
            f"{name} was {_shown(was)}, is {_shown(here)}"
            for key in dict.fromkeys((*now, *kept))
            if key not in loose
            for name, was, here in _differences(kept.get(key), now.get(key), key)
        ]
        if found:
            what = f"was begun for another search: {'; '.join(found[:_MOST_CHANGES])}"
            fix = "undo that, remove this search, or search into another folder"
            raise InputError(Problem(self._where, what, fix))
        return dict(kept)


def open_study(
    storage: str, name: str, genes: Sequence[Gene], *, objectives: int, where: str
) -> Study:
    """Open or begin a study; `storage` is an SQLAlchemy URL, `where` what is said of it.

    Raises
    ------
    InputError
        if the storage holds a study of this name of another kind, or its driver is missing.
    EnvironmentFault
        if it cannot be used.

    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _faults(where):
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=["minimize"] * objectives,
                load_if_exists=True,
            )
        except ImportError:
            fix = "install it: `pip install 'psycopg[binary]'` for postgresql+psycopg"
            raise InputError(Problem(where, "its driver is not installed", fix)) from None
        if len(study.directions) != objectives:
            what = f"its study '{name}' has {len(study.directions)} objectives, not {objectives}"
            raise InputError(Problem(where, what, "search into another folder"))
    return Study(study, genes, where)


def shown_storage(storage: str) -> str:
    """Give the URL of a storage as it may be shown: without password and options.

    Raises
    ------
    InputError
        if it is none; what it holds is not said.

    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(storage).set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        fix = "write sqlite:///trials.db, or postgresql+psycopg://user:password@host/database"
        raise InputError(Problem("--storage", "is no URL of a database", fix)) from None


def read_study(file: Path) -> tuple[tuple[Gene, ...], tuple[str, ...], tuple[Trial, ...]]:
    """Give genes, names of losses and trials of a study in an SQLite file that nobody closed.

    Raises
    ------
    ValueError
        if it holds no study of ours.
    EnvironmentFault
        if it cannot be read.

    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _faults(str(file)):
        storage = f"sqlite:///{file.resolve()}"
        names = optuna.get_all_study_names(storage)
        if len(names) != 1:
            raise ValueError(f"{len(names)} studies in {file.name}")
        study = optuna.load_study(study_name=names[0], storage=storage)
        trials = tuple(_trial(one) for one in study.get_trials(deepcopy=False))
        kept = study.user_attrs.get(_SETUP, {})
    genes = tuple(read_gene(one) for one in kept.get("genes", ()))
    pareto = len(study.directions) > 1
    losses = tuple(kept["search"]["pareto"]) if pareto else ("loss",)
    return genes, losses, trials


def _distribution(gene: Gene) -> Any:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(gene, Choice):
        return CategoricalDistribution(gene.values)
    if gene.is_int:
        return IntDistribution(int(gene.low), int(gene.high), log=gene.is_log)
    return FloatDistribution(gene.low, gene.high, log=gene.is_log)


def _trial(found: Any) -> Trial:
    from optuna.trial import TrialState

    states: dict[Any, Literal["running", "complete", "failed"]] = {
        TrialState.COMPLETE: "complete",
        TrialState.FAIL: "failed",
    }
    kept = found.user_attrs
    return Trial(
        number=found.number,
        values=tuple(kept.get("values", ())),
        state=states.get(found.state, "running"),
        losses=tuple(found.values or ()),
        scores=kept.get("scores", {}),
        reason=kept.get("reason", ""),
        seconds=kept.get("seconds", 0.0),
        merging=kept.get("merging", 0.0),
        items=kept.get("items"),
        same_as=kept.get("same_as"),
    )


@contextmanager
def _faults(where: str) -> Iterator[None]:
    """Name the storage in what SQLAlchemy, Optuna and the disk say."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, OptunaError, OSError) as error:
        reason = printable(getattr(error, "orig", None) or error, 300)
        fix = "free the disk or name another storage; trials that are kept are not made again"
        what = f"the trials cannot be kept: {reason}"
        raise EnvironmentFault(Problem(where, what, fix)) from error


def _differences(was: Any, here: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(here, dict):
        for name in dict.fromkeys((*here, *was)):
            yield from _differences(was.get(name), here.get(name), f"{path}.{name}")
    elif was != here and not (_is_nan(was) and _is_nan(here)):
        yield path, was, here


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(value: Any) -> str:
    return "not given" if value is None else printable(json.dumps(value), 80)
