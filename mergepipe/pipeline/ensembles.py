"""Ensembles: recipes without a merge, whose models are mixed by what they answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergepipe.checkpoint import Checkpoint, ModelSource, open_checkpoint
from mergepipe.errors import InputError, Problem, Problems
from mergepipe.evaluate import Scores, Settings, score
from mergepipe.execute import Budget
from mergepipe.model import Model
from mergepipe.model.answers import Answers, Remembered
from mergepipe.model.mixture import Ensemble, Mixture
from mergepipe.pipeline.addressed import check_served, served_model
from mergepipe.pipeline.preparing import Options, Prepared, find_evaluations, named_target, settled
from mergepipe.pipeline.scoring import input_model
from mergepipe.recipe import Document, parse
from mergepipe.recipe.ensembles import EnsembleSpec, as_models, read_ensemble
from mergepipe.search.space import untuned

__all__ = [
    "UNIFORM",
    "Members",
    "absolute_members",
    "answers_file",
    "check_ensemble",
    "ensemble_weights",
    "prepare_ensemble",
    "score_ensemble",
]

UNIFORM = "uniform"
_ANSWERS = "answers.db"


def check_ensemble(document: Document, problems: Problems) -> None:
    """Find what can be said of an ensemble's recipe without its models."""
    document = untuned(document, problems)
    if read_ensemble(document, problems) is not None:
        parse(as_models(document), problems)


def prepare_ensemble(document: Document, problems: Problems, options: Options) -> Prepared:
    """Prepare the recipe of an ensemble: there are no plans, and nothing is asked yet.

    Raises
    ------
    InputError
        with every fault of the recipe, its folders, and the addresses that may not be asked.
    EnvironmentFault
        if the package that asks servers is not installed.

    """
    problems.found.extend(document.faults)
    still = untuned(document, problems)
    spec = read_ensemble(still, problems)
    problems.raise_any()
    assert spec is not None, "an ensemble without problems"
    check_served((one.served for one in spec.members.values() if one.served), problems)
    recipe = parse(replace(as_models(still), faults=()), problems)
    problems.raise_any()
    assert recipe is not None, "a recipe without problems"
    here = {k: one for k, one in recipe.sources.items() if spec.members[k].served is None}
    opened = {
        label: open_checkpoint(source, problems, local_files_only=options.local_files_only)
        for label, source in here.items()
    }
    evaluations = find_evaluations(recipe.evaluations, document.folder, problems)
    problems.raise_any()
    checkpoints = {label: opened.get(label) or _elsewhere(label) for label in spec.members}
    return Prepared(
        recipe=replace(recipe, sources=here, compares=True),
        checkpoints=checkpoints,
        plans=(),
        evaluations=evaluations,
        target=named_target(options.out or recipe.output.path),
        resources=settled(options.resources),
        budget=Budget(1, 0),
        warnings=tuple(problems.warnings),
        plugins=options.plugins,
        searched=None if recipe.search is None else document,
        ensemble=spec,
    )


def _elsewhere(label: str) -> Checkpoint:
    place = Path("server") / label
    return Checkpoint(label, place, {}, {}, {}, {}, ModelSource(label, place, None, None, None))


def answers_file(cache: Path | None) -> Path | None:
    """Give the file that keeps what servers answered, beside the cache of results."""
    return None if cache is None else cache.with_name(_ANSWERS)


class Members:
    """The members of a prepared ensemble, for one mixture after the other.

    Each is asked once; what servers answer is kept in `answers` for later runs.
    """

    def __init__(self, prepared: Prepared, answers: Path | None) -> None:
        spec = prepared.ensemble
        assert spec is not None, "the recipe of an ensemble"
        self.labels = tuple(spec.members)
        memory, kept = Answers(), Answers(answers)
        members = {
            label: Remembered(_served(label, one.served), kept)
            if one.served is not None
            else Remembered(_here(prepared, label, spec.mix), memory)
            for label, one in spec.members.items()
        }
        pattern = None if spec.answer is None else re.compile(spec.answer)
        self._ensemble = Ensemble(members, spec.mix, pattern)

    def mixture(self, spec: EnsembleSpec, name: str = "mixture") -> Mixture:
        """Give the mixture by the weights of a recipe."""
        return self._ensemble.mixture(ensemble_weights(spec), switch=spec.switch, name=name)

    def named(self, label: str) -> Mixture:
        """Give one member by itself, or the plain mixture of all in equal shares."""
        shares = {one: float(label in (one, UNIFORM)) for one in self.labels}
        return self._ensemble.mixture(shares, name=label)


def ensemble_weights(spec: EnsembleSpec) -> dict[str, float]:
    """Give the weights that a recipe says, which need not sum to 1."""
    return {label: one.weight for label, one in spec.members.items()}


def _served(label: str, served: Any) -> Model:
    return served_model(served, label)


def _here(prepared: Prepared, label: str, mix: str) -> Any:
    """Give a model of this process; by its bytes if these are mixed."""
    model: Any = input_model(prepared, label)
    if mix != "bytes":
        return model
    from mergepipe.model.byte_models import ByteTraced
    from mergepipe.tokenizer import read_vocabulary

    vocabulary = read_vocabulary(prepared.checkpoints[label].tokenizer_folder, label)
    spelled = {i: one.bytes for i, one in vocabulary.tokens.items() if one.kind != "special"}
    return ByteTraced(model.local, spelled)


def score_ensemble(
    prepared: Prepared, *, notice: Callable[[str], None], settings: Settings | None = None
) -> Scores:
    """Score each member by itself, all in equal shares, and the mixture of the recipe.

    Raises
    ------
    InputError
        if there is nothing to score them on.

    """
    if not prepared.evaluations:
        what = "an ensemble needs something to be scored on: it has no weights to be kept"
        raise InputError(Problem(prepared.recipe.file.name, what, "give `evaluate:`"))
    return score(_asked(prepared, notice, settings), prepared.evaluations, settings)


def _asked(
    prepared: Prepared, notice: Callable[[str], None], settings: Settings | None
) -> Iterator[Model]:
    cache = None if settings is None or settings.cache is None else settings.cache.file
    members = Members(prepared, answers_file(cache))
    assert prepared.ensemble is not None, "the recipe of an ensemble"
    for label in (*members.labels, UNIFORM):
        notice(label)
        yield members.named(label)
    notice("mixture")
    yield members.mixture(prepared.ensemble)


def absolute_members(prepared: Prepared, found: dict[str, Any]) -> None:
    """Make the paths of a recipe's members absolute."""
    assert prepared.ensemble is not None, "the recipe of an ensemble"
    models = found["ensemble"]["models"]
    for label, source in prepared.recipe.sources.items():
        entry = models[label]
        entry = dict(entry) if isinstance(entry, dict) else {"path": entry}
        if source.path is not None:
            entry["path"] = str(source.path.resolve())
        if source.adapter is not None:
            entry["adapter"] = str(source.adapter.resolve())
        models[label] = entry
    for label, member in prepared.ensemble.members.items():
        if member.served is not None and member.served.tokenizer is not None:
            models[label]["tokenizer"] = str(member.served.tokenizer.resolve())
