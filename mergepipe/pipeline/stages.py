"""The stages of a recipe, planned in order: merges, and transplants between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergepipe.checkpoint import Checkpoint
from mergepipe.dialect import ON_TASK_VECTORS
from mergepipe.errors import Problems
from mergepipe.pipeline.transplanting import check_transplants, plan_copy, plan_transplants
from mergepipe.pipeline.vocabularies import United, origin_label
from mergepipe.plan import Plan, make_plan
from mergepipe.recipe import MergeSpec, Recipe
from mergepipe.transplant.planning import Transplant

__all__ = ["named_tokenizer", "plan_stages"]


def plan_stages(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    united: United | None,
    stages: Path,
    problems: Problems,
    *,
    hint: str,
) -> tuple[tuple[Plan, ...], dict[str, Transplant]]:
    """Plan the stages in order; a later one sees an earlier one's planned output as a model.

    Stages before the last are stored as fp32, so that values are rounded once.
    """
    known = dict(checkpoints if united is None else united.checkpoints)
    aligned = united is not None and not united.is_as_before
    plans: list[Plan] = []
    transplants: dict[str, Transplant] = {}
    for name, spec in recipe.merges.items():
        while found := plan_transplants(recipe, known, transplants, stages, problems):
            transplants |= found
            known |= {label: one.result for label, one in found.items()}
        if any(label in recipe.transplants and label not in known for label in _used(name, spec)):
            break
        if name in transplants:
            plans.append(_copies(recipe, name, spec, transplants[name], checkpoints))
            break
        last = recipe.compares or name == recipe.result
        plan = make_plan(
            name,
            spec,
            known,
            problems,
            seed=recipe.seed,
            dtype=recipe.output.dtype if last else "float32",
            like=_origin(recipe, spec, checkpoints),
            tokenizer=known.get(named_tokenizer(recipe)) if last else None,
            aligned=aligned,
            max_shard_bytes=recipe.output.max_shard_bytes,
            nan_policy=recipe.nan_policy,
            compat=None if recipe.compat is None else ON_TASK_VECTORS,
            hint=hint,
        )
        if plan is None:
            break
        if not recipe.compares:
            known[name] = plan.as_checkpoint(stages / name)
        plans.append(plan)
    check_transplants(recipe, transplants, known, problems)
    return tuple(plans), transplants


def _used(name: str, spec: MergeSpec) -> tuple[str, ...]:
    taken = [rule.take for rule in spec.rules if rule.take is not None]
    bases = [one.base for one in spec.slices if one.base is not None]
    return (name, spec.donor, *spec.models, *taken, *bases)


def _copies(
    recipe: Recipe,
    name: str,
    spec: MergeSpec,
    transplant: Transplant,
    checkpoints: Mapping[str, Checkpoint],
) -> Plan:
    return plan_copy(
        name,
        spec,
        transplant.result,
        seed=recipe.seed,
        dtype=recipe.output.dtype,
        like=_origin(recipe, spec, checkpoints),
        max_shard_bytes=recipe.output.max_shard_bytes,
        nan_policy=recipe.nan_policy,
    )


def named_tokenizer(recipe: Recipe) -> str:
    """Give the model whose tokenizer the result shall have; empty where none is named."""
    named = recipe.tokenizer.source if recipe.tokenizer else None
    return "" if named is None else origin_label(recipe, named)


def _origin(
    recipe: Recipe, spec: MergeSpec, checkpoints: Mapping[str, Checkpoint]
) -> Checkpoint | None:
    """Follow a merge's donor back through stages to the model that it comes from."""
    return checkpoints.get(origin_label(recipe, spec.donor))
