"""Candidates of a search, made in memory and scored, in a worker's process."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from mergepipe.errors import EnvironmentFault, MergepipeError, Problems
from mergepipe.evaluate import (
    Cache,
    Evaluation,
    ScoreRow,
    Settings,
    Split,
    open_cache,
    refuse_unallowed,
    score,
)
from mergepipe.execute import Resources
from mergepipe.model import Model
from mergepipe.pipeline.ensembles import Members, answers_file
from mergepipe.pipeline.kinds import prepare_document
from mergepipe.pipeline.live import LiveModels
from mergepipe.pipeline.preparing import Options, replanned
from mergepipe.pipeline.remote import remote_input
from mergepipe.pipeline.scoring import input_model
from mergepipe.plugins import load_plugins
from mergepipe.recipe import Document
from mergepipe.recipe.ensembles import read_ensemble
from mergepipe.search.pool import Answer, Job, Scorer
from mergepipe.search.remote import remote_candidate
from mergepipe.search.space import read_space

__all__ = ["Setting", "candidate_scorer"]


@dataclass(frozen=True)
class Setting:
    """All that a worker needs: the recipe with what is searched in it, and what it may use."""

    document: Document
    layers: int | None
    names: tuple[str, ...]  # of the evaluations that are scored
    resources: Resources
    plugins: tuple[Path, ...]
    allowed: frozenset[str]
    cache: Path | None
    target: Path | None = None


def candidate_scorer(setting: Setting) -> Scorer:
    """Give the function that scores candidates; called once in each worker."""
    import torch

    torch.set_num_threads(setting.resources.threads or 1)
    return _Candidates(setting)


class _Candidates:
    """Room for one candidate after the other."""

    def __init__(self, setting: Setting) -> None:
        problems, document = Problems(), setting.document
        resources = setting.resources
        digests = load_plugins(setting.plugins)
        options = Options(setting.target, resources, plugins=digests)
        self._prepared = prepare_document(document, problems, options)
        self._space = read_space(document, setting.layers, problems)
        problems.raise_any()
        found = self._prepared.evaluations
        self._evaluations = tuple(one for one in found if one.name in setting.names)
        refuse_unallowed(self._evaluations, setting.allowed)
        self._room = LiveModels(resources)
        self._members: Members | None = None
        if self._prepared.ensemble is not None:
            self._members = Members(self._prepared, answers_file(setting.cache))
        self._setting = setting
        self._open = ExitStack()  # closed with the process
        self._cache: Cache | None = None
        if setting.cache is not None:
            self._cache = self._open.enter_context(open_cache(setting.cache))

    def __call__(self, job: Job) -> Answer:
        """Score a candidate or an input: see `Job`."""
        began = time.perf_counter()
        try:
            model = self._candidate(job) if job.label is None else self._input(job.label)
            made = time.perf_counter()
            rows, reason, trace, is_environment = self._scored(model, job)
        except MergepipeError as error:
            seconds = time.perf_counter() - began
            elsewhere = error.exit_status == EnvironmentFault.exit_status
            return Answer(reason=str(error), seconds=seconds, is_environment=elsewhere)
        return Answer(
            rows,
            reason,
            trace,
            seconds=time.perf_counter() - began,
            merging=made - began,
            is_environment=is_environment,
        )

    def _candidate(self, job: Job) -> Model:
        filled, service = self._space.filled(job.values), self._prepared.service
        if self._members is not None:
            problems = Problems()
            spec = read_ensemble(filled, problems)
            problems.raise_any()
            assert spec is not None, "an ensemble without problems"
            return self._members.mixture(spec)
        if service is not None:
            return remote_candidate(service, filled)
        if self._prepared.compositions is not None:
            return self._prepared.compositions.candidate(filled)
        candidate = replanned(self._prepared, filled)
        return self._room.merged(candidate, candidate.plans[-1])

    def _input(self, label: str) -> Model:
        if self._members is not None:
            return self._members.named(label)
        service = self._prepared.service
        if service is not None:
            return remote_input(service, label)
        if self._prepared.compositions is not None:
            return self._prepared.compositions.alone(label)
        return input_model(self._prepared, label)

    def _scored(self, model: Model, job: Job) -> tuple[tuple[ScoreRow, ...], str, str, bool]:
        """Give the rows of the first evaluations up to one that fails, and why that does."""
        rows: list[ScoreRow] = []
        cache = None if job.fresh else self._cache
        for evaluation in self._evaluations:
            settings = Settings(part=job.part, cache=cache, allowed=self._setting.allowed)
            scores = score([model], [_on_items(evaluation, job.items)], settings)
            rows += scores.rows
            for failure in scores.failures:
                elsewhere = failure.exit_status == EnvironmentFault.exit_status
                where = "" if failure.item is None else f", item {failure.item}"
                reason = f"{failure.evaluation}{where}: {failure.reason}"
                return tuple(rows), reason, failure.traceback, elsewhere
        return tuple(rows), "", "", False


def _on_items(evaluation: Evaluation, count: int | None) -> Evaluation:
    """Give an evaluation on so many of its items: with a split, some that more would hold too."""
    if count is None:
        return evaluation
    split = evaluation.split
    if split is None:
        return replace(evaluation, limit=min(count, evaluation.limit or count))
    count = min(count, split.search)
    rest = split.search + split.holdout - count
    return replace(evaluation, split=Split(count, rest, split.seed))
