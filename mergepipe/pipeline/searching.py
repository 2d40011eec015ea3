"""A recipe tuned: candidates in memory, trials in a study, the best written as a recipe."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergepipe.errors import InputError, Problem
from mergepipe.pipeline.adapter_serving import server_session
from mergepipe.pipeline.candidates import Setting, candidate_scorer
from mergepipe.pipeline.ensembles import UNIFORM
from mergepipe.pipeline.preparing import Prepared
from mergepipe.pipeline.search_setup import absolute, setup_of
from mergepipe.pipeline.search_space import batch_of, searched_space
from mergepipe.recipe import SearchSpec
from mergepipe.search.finals import finalists_of, judge, scored_inputs, try_out
from mergepipe.search.loop import Loop, Rules, best_of
from mergepipe.search.objective import Objective, with_best
from mergepipe.search.optimizer import Nevergrad, check_packages
from mergepipe.search.outputs import recipe_text, write_folder, write_text, write_trials
from mergepipe.search.plots import svg_files
from mergepipe.search.pool import Pool
from mergepipe.search.space import Gene
from mergepipe.search.study import Study, Trial, open_study, shown_storage
from mergepipe.search.verdict import Verdict
from mergepipe.write import check_target, disk_faults

__all__ = [
    "BEST_FILE",
    "TRIALS_FILE",
    "Searched",
    "Searching",
    "search",
    "search_folder",
]

BEST_FILE = "best.yaml"
TRIALS_FILE = "trials.db"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Searching:
    """What a search may use, beside what its recipe says.

    `report` is told every trial that is done, and how many there will be at most.
    """

    workers: int | None = None  # default: one per core, if that many models fit in memory
    overwrite: bool = False  # the output may be there already
    # An SQLAlchemy URL, which may hold a password; default: an SQLite file in the folder.
    storage: str | None = field(default=None, repr=False)
    plugins: tuple[Path, ...] = ()
    allowed: frozenset[str] = frozenset()
    cache: Path | None = None
    report: Callable[[Trial, int], None] | None = None
    tell: Tell | None = None


@dataclass(frozen=True)
class Searched:
    """What a search found, and where it is kept."""

    folder: Path
    genes: tuple[Gene, ...]
    names: tuple[str, ...]  # of the losses
    trials: tuple[Trial, ...]
    winner: Trial
    verdict: Verdict
    finalists: tuple[Trial, ...]
    warnings: tuple[str, ...]

    @property
    def best(self) -> Path:
        """The recipe of the winner."""
        return self.folder / BEST_FILE


def search_folder(target: Path) -> Path:
    """Give the folder where the search for an output keeps what it finds."""
    return target.with_name(f"{target.name}.search")


def search(prepared: Prepared, how: Searching) -> Searched:
    """Tune a recipe, going on where a search that was cut off stopped; the winner is not merged.

    Trials, the winner's recipe, and what held-out items say of it are kept beside the output, in
    `search_folder`.

    Raises
    ------
    InputError
        if the recipe searches nothing, its ranges hold values that are none, the folder belongs to
        another search, or too many candidates fail.
    EnvironmentFault
        from the disk, the storage, or an evaluation's server; what is done is kept. If a package
        is missing.
    KeyboardInterrupt
        saying what is kept.

    """
    run = _Search(prepared, how)
    with _locked(run.folder), server_session(prepared, how.tell):
        return run.run()


class _Search:
    """One search of a prepared recipe."""

    def __init__(self, prepared: Prepared, how: Searching) -> None:
        spec, document = prepared.recipe.search, prepared.searched
        if spec is None or document is None:
            what = "the recipe has no `search:` section"
            raise InputError(Problem(prepared.recipe.file.name, what, "add one"))
        if prepared.target is None:
            raise InputError(
                Problem("output.path", "no output folder", "set it, or give --out DIR")
            )
        check_packages()
        check_target(prepared.target, overwrite=how.overwrite)
        self.prepared, self.how = prepared, how
        self.spec, self.document = spec, document
        self.space, self.layers = searched_space(prepared, document)
        self.evaluations = [one for one in prepared.evaluations if one.name in spec.weights]
        self.folder = search_folder(prepared.target)
        # An ensemble's members are asked once, by one worker: candidates are arithmetic then.
        one = prepared.ensemble is not None
        self.workers = 1 if one else how.workers or _fitting(prepared)
        self.warnings: list[str] = []
        self.trials: list[Trial] = []

    def run(self) -> Searched:
        """Search, judge, and write what was found."""
        fields = self.spec.fields
        objective = _objective(self.spec)
        batch = batch_of(self.spec, self.space)
        pool = self._pool()
        try:
            study = self._study(objective)
            if not study.trials():
                try_out(pool.run, objective, next(iter(self.prepared.checkpoints)))
            setup = setup_of(self.prepared, self.spec, self.space, self.evaluations, batch)
            kept = study.agree(setup)
            optimizer = Nevergrad(
                fields.optimizer,
                self.space.genes,
                budget=int(kept["budget"]),
                batch=batch,
                seed=fields.seed,
            )
            objective = self._completed(objective, pool)
            loop = Loop(
                optimizer,
                study,
                objective,
                _rules(self.spec, batch, self._items()),
                pool.run,
                self._done,
            )
            self.trials = loop.trials
            loop.run()
            verdict = judge(
                pool.run,
                objective,
                loop.trials,
                tuple(self.prepared.checkpoints),
                is_split=self._is_split(),
                most=fields.finalists,
                **self._baselines(),
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(self._kept()) from stop
        finally:
            pool.close()
        if verdict is None:
            raise InputError(Problem("search", "no candidate could be scored on all items"))
        return self._written(objective, loop.trials, verdict)

    def _study(self, objective: Objective) -> Study:
        with disk_faults(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        named, file = self.how.storage, self.folder / TRIALS_FILE
        return open_study(
            f"sqlite:///{file.resolve()}" if named is None else named,
            self.folder.name,
            self.space.genes,
            objectives=len(objective.names),
            where=str(file) if named is None else shown_storage(named),
        )

    def _pool(self) -> Pool:
        setting = Setting(
            document=self.document,
            layers=self.layers,
            names=tuple(self.spec.weights),
            resources=self._share(),
            plugins=self.how.plugins,
            allowed=self.how.allowed,
            cache=self.how.cache,
            target=self.prepared.target,
        )
        return Pool(
            candidate_scorer,
            setting,
            workers=self.workers,
            timeout=self.spec.fields.timeout,
            scratch=self.folder / "scratch",
        )

    def _share(self) -> Any:
        """Give what one worker may use."""
        resources, workers = self.prepared.resources, self.workers
        threads = resources.threads or max(1, _cores() // workers)
        memory = resources.max_memory
        return replace(
            resources,
            threads=threads,
            max_memory=None if memory is None else max(1, memory // workers),
        )

    def _completed(self, objective: Objective, pool: Pool) -> Objective:
        """Score the inputs, where losses are relative to theirs."""
        if not objective.is_relative:
            return objective
        inputs = scored_inputs(pool.run, tuple(self.prepared.checkpoints), "search")
        return with_best(objective, list(inputs.values()))

    def _baselines(self) -> Any:
        """Give what the winner is held against, beside the best input."""
        if self.prepared.ensemble is None:
            return {}
        return {"untuned": "the untuned mixture", "also": (UNIFORM,)}

    def _items(self) -> int:
        """Give how many items the largest evaluation is known to have."""
        known = [one.split.search if one.split else one.limit for one in self.evaluations]
        if self.spec.fields.halving is not None and None in known:
            what = "needs evaluations that say how many items there are"
            raise InputError(Problem("search.halving", what, "give them `split:` or `limit:`"))
        return max(count or 0 for count in known)

    def _is_split(self) -> bool:
        without = [one.name for one in self.evaluations if one.split is None]
        if without:
            self.warnings.append(
                f"{', '.join(without)}: no `split:`, so gains are those on the items that were "
                "searched on, and look better than they are"
            )
        return not without

    def _done(self, trial: Trial) -> None:
        if self.how.report is not None:
            self.how.report(trial, self.spec.fields.budget)

    def _kept(self) -> str:
        best = best_of(self.trials)
        done = f"{len(self.trials)} trials are kept"
        found = "" if best is None else f", the best loss is {best.losses[0]:.6g}"
        return f"{done}{found}; run the same command again to go on"

    def _written(self, objective: Objective, trials: Sequence[Trial], verdict: Verdict) -> Searched:
        """Write the winner's recipe, the trials and the verdict."""
        winner = next(one for one in trials if one.number == verdict.winner)
        fields, genes = self.spec.fields, self.space.genes
        searched = Searched(
            self.folder,
            genes,
            objective.names,
            tuple(trials),
            winner,
            verdict,
            tuple(finalists_of(objective, trials, fields.finalists)),
            tuple(self.warnings),
        )
        with disk_faults(self.folder):
            text = json.dumps(verdict.plain(), indent=1) + "\n"
            write_text(self.folder / "verdict.json", text)
            write_text(searched.best, self._recipe(winner, len(trials)))
            write_trials(self.folder, "trials", genes, objective.names, trials)
            plots = svg_files(genes, objective.names, trials)
            write_folder(self.folder / "plots", plots)
            if objective.is_front:
                recipes = {
                    f"{one.number:05d}.yaml": self._recipe(one, len(trials))
                    for one in searched.finalists
                }
                write_folder(self.folder / "front", recipes)
                write_trials(
                    self.folder / "front", "front", genes, objective.names, searched.finalists
                )
        return searched

    def _recipe(self, trial: Trial, count: int) -> str:
        values = trial.values
        data = absolute(self.prepared, self.space.filled(values).data, self.prepared.evaluations)
        scores = ", ".join(f"{name} {value:.6g}" for name, value in trial.scores.items())
        comment = (
            f"Trial {trial.number} of {count} by {self.spec.fields.optimizer}, of the search in\n"
            f"{self.prepared.recipe.file.name}. On the items that were searched on: {scores}."
        )
        return recipe_text(data, comment)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fitting(prepared: Prepared) -> int:
    """Give how many workers there may be: each holds the model as fp32, and buffers beside."""
    if prepared.resources.device is not None or not prepared.plans:
        return 1
    model_bytes = 4 * sum(step.numel for step in prepared.plans[-1].steps)
    memory = prepared.resources.max_memory or 0  # a quarter of what is free
    return max(1, min(_cores(), 2 * memory // max(1, 2 * model_bytes)))


def _objective(spec: SearchSpec) -> Objective:
    fields = spec.fields
    return Objective(
        spec.weights,
        is_front=fields.pareto is not None,
        is_relative=fields.scale == "relative",
        penalty=fields.penalty,
    )


def _rules(spec: SearchSpec, batch: int, most: int) -> Rules:
    fields, rungs = spec.fields, []
    if fields.halving is not None:
        count = float(fields.halving.items)
        while count < most:
            rungs.append(round(count))
            count /= fields.halving.keep
    return Rules(
        fields.budget,
        batch,
        fields.patience,
        fields.max_failed_share,
        (*rungs, None),
        fields.halving.keep if fields.halving else 0.5,
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other searches out of the folder while this one goes on."""
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = "another search goes on in this folder"
            raise InputError(Problem(str(folder), what, "wait for it, or name another")) from error
        yield
