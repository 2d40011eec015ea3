"""mergekit-moe's configuration -> everything known before the result is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mergepipe.checkpoint import Checkpoint, open_checkpoint
from mergepipe.errors import Problems
from mergepipe.execute import Resources, share_out
from mergepipe.moe import Mixture, Router, choose, is_moe, plan_mixture, read_mixture
from mergepipe.pipeline.ensembles import prepare_ensemble
from mergepipe.pipeline.preparing import (
    Prepared,
    check_apart,
    check_recipe,
    find_evaluations,
    named_target,
    prepare,
    settled,
)
from mergepipe.plan import Plan
from mergepipe.plugins import load_plugins
from mergepipe.recipe import has_several, override, read_document
from mergepipe.recipe.ensembles import is_ensemble

__all__ = ["check_file", "is_mixture", "prepare_file", "prepare_moe"]


def prepare_file(
    file: Path,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    resources: Resources | None = None,
    local_files_only: bool = False,
    plugins: Sequence[Path] = (),
    compat: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Prepared:
    """Prepare what a file says: a merge by `prepare`, or a mixture of experts by `prepare_moe`.

    Or an ensemble, by `prepare_ensemble`.
    """
    if not has_several(file) and is_ensemble(document := override(read_document(file), settings)):
        return prepare_ensemble(
            document,
            Problems(),
            out=out,
            resources=resources,
            plugins=load_plugins(plugins),
            local_files_only=local_files_only,
        )
    if is_mixture(file):
        found = prepare_moe(
            file,
            settings=settings,
            out=out,
            resources=resources,
            local_files_only=local_files_only,
            tell=tell,
        )
        return replace(found, warnings=(*found.warnings, *_without_effect(file, plugins, compat)))
    return prepare(
        file,
        settings=settings,
        out=out,
        resources=resources,
        local_files_only=local_files_only,
        plugins=plugins,
        compat=compat,
    )


def is_mixture(file: Path) -> bool:
    """Tell the configuration of a mixture of experts, which has no form as a recipe."""
    return not has_several(file) and is_moe(read_document(file).data)


def check_file(
    file: Path, problems: Problems, plugins: Sequence[Path] = (), compat: str | None = None
) -> None:
    """Find what can be said of a recipe or a mixture without its models."""
    if is_mixture(file):
        read_mixture(read_document(file), problems)
        problems.warnings.extend(_without_effect(file, plugins, compat))
    else:
        check_recipe(file, problems, plugins, compat)


def _without_effect(file: Path, plugins: Sequence[Path], compat: str | None) -> tuple[str, ...]:
    given = [name for name, value in (("plugin", plugins), ("compat", compat)) if value]
    return tuple(f"{file.name}: --{x} has no effect on a mixture of experts" for x in given)


def prepare_moe(
    file: Path,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    resources: Resources | None = None,
    local_files_only: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Prepared:
    """Read a mixture of experts and the headers of its models, and plan it.

    With `tell`, which is given messages, the gates are worked out as well, to warn of those that
    are nearly alike; otherwise that waits until they are written.

    Raises
    ------
    InputError
        with every fault of the configuration, the models and the prompts at once.
    EnvironmentFault
        if the memory that may be used is not enough for one tensor.

    """
    resources = settled(resources)
    problems = Problems()
    mixture = read_mixture(override(read_document(file), settings), problems)
    problems.raise_any()
    assert mixture is not None, "a mixture without problems"
    recipe, checkpoints = mixture.recipe, _opened(mixture, problems, local_files_only)
    evaluations = find_evaluations(recipe.evaluations, file.parent, problems)
    target = named_target(out or recipe.output.path)
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


def _opened(mixture: Mixture, problems: Problems, local_only: bool) -> dict[str, Checkpoint]:
    opened = {
        label: open_checkpoint(source, problems, local_files_only=local_only)
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
