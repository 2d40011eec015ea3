"""Recipes for a merge service: their models are elsewhere, and only names of them are here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mergepipe.checkpoint import Checkpoint, ModelSource
from mergepipe.errors import InputError, Problem, Problems
from mergepipe.execute import Budget
from mergepipe.pipeline.preparing import Options, Prepared, find_evaluations, named_target, settled
from mergepipe.recipe import Document, parse
from mergepipe.search.remote import (
    RemoteModel,
    RemotePool,
    local_form,
    named_models,
    read_service,
    remote_pool,
)
from mergepipe.search.space import untuned

__all__ = ["check_remote", "prepare_remote", "remote_input"]


def check_remote(document: Document, problems: Problems) -> None:
    """Find what can be said of a recipe for a service without asking it."""
    read_service(document, problems)
    parse(untuned(local_form(document), problems), problems)


def prepare_remote(document: Document, problems: Problems, options: Options) -> Prepared:
    """Prepare a recipe for a service: there are no plans, and checkpoints are names alone.

    Raises
    ------
    InputError
        with every fault of the recipe; if the service may not be asked.
    EnvironmentFault
        if it does not answer.

    """
    problems.found.extend(document.faults)
    named = read_service(document, problems)
    problems.raise_any()
    assert named is not None, "a recipe for a service without problems"
    local = local_form(document)
    recipe = parse(untuned(local, problems), problems)
    if recipe is not None and recipe.search is None:
        what = "weights stay with a service, so its recipes are searched, and not merged here"
        problems.add(document.where(("service",)), what, "add a `search:` section")
    specs = () if recipe is None else recipe.evaluations
    evaluations = find_evaluations(specs, document.folder, problems)
    problems.raise_any()
    assert recipe is not None, "a recipe without problems"
    url, key_env = named
    pool = remote_pool(url, key_env=key_env)
    return Prepared(
        recipe=replace(recipe, sources={}),
        checkpoints={label: _named(label) for label in _inputs(pool, document)},
        plans=(),
        evaluations=evaluations,
        target=named_target(options.out or recipe.output.path),
        resources=settled(options.resources),
        budget=Budget(1, 0),
        warnings=tuple(problems.warnings),
        plugins=options.plugins,
        searched=None if recipe.search is None else document,
        service=pool,
    )


def _inputs(pool: RemotePool, document: Document) -> list[str]:
    """Give the inputs that the service lets be asked by themselves: the base, if not more."""
    if unknown := [one for one in named_models(document) if one not in pool.labels]:
        what = f"the service has no model '{unknown[0]}'; it has {', '.join(pool.labels)}"
        raise InputError(Problem(document.where(("merge",)), what))
    base = str(pool.said.get("base"))
    alone = "linear" in pool.said.get("methods", {})
    return list(dict.fromkeys([base, *(named_models(document) if alone else ())]))


def _named(label: str) -> Checkpoint:
    place = Path("service") / label
    return Checkpoint(label, place, {}, {}, {}, {}, ModelSource(label, place, None, None, None))


def remote_input(pool: RemotePool, label: str) -> RemoteModel:
    """Give a model of the pool by itself."""
    return pool.candidate({"method": "linear", "models": {label: {}}}, name=label)
