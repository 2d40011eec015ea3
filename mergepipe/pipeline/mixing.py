"""mergekit-moe's configuration -> everything known before the result is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mergepipe.checkpoint import Checkpoint, open_checkpoint
from mergepipe.errors import Problems
from mergepipe.execute import Resources, share_out
from mergepipe.moe import Mixture, Router, choose, is_moe, plan_mixture, read_mixture
from mergepipe.pipeline.preparing import (
    Options,
    Prepared,
    check_apart,
    find_evaluations,
    named_target,
    settled,
)
from mergepipe.plan import Plan
from mergepipe.recipe import Document

__all__ = ["check_moe", "is_mixture", "prepare_moe"]


def is_mixture(document: Document) -> bool:
    """Tell the configuration of a mixture of experts."""
    return is_moe(document.data)


def check_moe(document: Document, problems: Problems) -> None:
    """Find what can be said of a mixture without its models."""
    read_mixture(document, problems)


def prepare_moe(document: Document, problems: Problems, options: Options) -> Prepared:
    """Read the headers of a mixture's models, and plan it.

    With `tell` the gates are worked out as well, to warn of those that are nearly alike; otherwise
    that waits until they are written.

    Raises
    ------
    InputError
        with every fault of the configuration, the models and the prompts at once.
    EnvironmentFault
        if the memory that may be used is not enough for one tensor.

    """
    resources, tell = settled(options.resources), options.tell
    mixture = read_mixture(document, problems)
    problems.raise_any()
    assert mixture is not None, "a mixture without problems"
    recipe, checkpoints = mixture.recipe, _opened(mixture, problems, options)
    evaluations = find_evaluations(recipe.evaluations, document.folder, problems)
    target = named_target(options.out or recipe.output.path)
    problems.raise_any()
    plan, router = _plan(mixture, checkpoints, resources, problems)
    if target is not None:
        check_apart(target, checkpoints)
    if tell is not None:
        if router.prompts and router.mode != "cheap_embed":
            tell(f"running {mixture.base} on the prompts, layer by layer, for the gates")
        router.check(problems)
        problems.raise_any()
    return Prepared(
        recipe=replace(recipe, merges={plan.name: plan.spec}),
        checkpoints=checkpoints,
        plans=(plan,),
        evaluations=evaluations,
        target=target,
        resources=resources,
        budget=share_out((plan,), resources.threads, resources.max_memory),
        warnings=tuple(problems.warnings),
    )


def _opened(mixture: Mixture, problems: Problems, options: Options) -> dict[str, Checkpoint]:
    opened = {
        label: open_checkpoint(source, problems, local_files_only=options.local_files_only)
        for label, source in mixture.recipe.sources.items()
    }
    return {label: found for label, found in opened.items() if found is not None}


def _plan(
    mixture: Mixture,
    checkpoints: Mapping[str, Checkpoint],
    resources: Resources,
    problems: Problems,
) -> tuple[Plan, Router]:
    target = choose(mixture, checkpoints, problems)
    problems.raise_any()
    assert target is not None, "an architecture that fits"
    router = Router.of(mixture, checkpoints[mixture.base], resources.device, problems)
    plan = plan_mixture(mixture, target, checkpoints, router, problems)
    problems.raise_any()
    return plan, router
