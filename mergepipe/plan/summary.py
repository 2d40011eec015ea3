"""A plan as people and machines read it: tensors that are made alike, together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergepipe.plan.make import Plan
from mergepipe.plan.steps import Step
from mergepipe.recipe import MergeSpec, Setting

__all__ = ["Group", "Value", "as_json", "groups"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Value:
    """The effective value of a parameter over a group, and where it comes from."""

    shown: str  # `0.5`, or `0.2 … 0.8` where a gradient gives tensors different values
    origin: str  # `default`, `merge`, or the rule: `where[0]`


@dataclass(frozen=True, slots=True)
class Group:
    """Output tensors made in the same way of the same models."""

    method: str | None  # None: copied
    inputs: tuple[str, ...]
    reason: str
    dtypes: tuple[str, ...]  # of the inputs, then of the output
    names: Mapping[str, int]  # `model.layers.*.mlp.up_proj.weight` -> how many tensors
    numel: int
    parameters: Mapping[str, Value]  # by `name`, or `label.name`
    then: tuple[str, ...] = ()  # post-steps with their parameters
    needs: str = ""  # what must be in memory at once, where a run of elements will not do


def groups(plan: Plan) -> tuple[Group, ...]:
    """Group the steps of a plan, in order."""
    alike: dict[tuple[object, ...], list[Step]] = {}
    for step in plan.steps:
        labels = tuple(one.label for one in step.inputs)
        stored = tuple(one.stored.dtype for one in step.all_inputs)
        posts = tuple(name for name, _ in step.then)
        key = (step.method, labels, step.rule, step.reason, stored, step.dtype, posts, _needs(step))
        alike.setdefault(key, []).append(step)
    return tuple(_group(plan.spec, steps) for steps in alike.values())


def _group(spec: MergeSpec, steps: Sequence[Step]) -> Group:
    first = steps[0]
    dtypes = (*(one.stored.dtype for one in first.all_inputs), first.dtype)
    return Group(
        method=first.method,
        inputs=tuple(one.label for one in first.all_inputs),
        reason=first.reason,
        dtypes=tuple(dict.fromkeys(dtypes)),
        names=Counter(_NUMBER.sub("*", step.name) for step in steps),
        numel=sum(step.numel for step in steps),
        parameters=_parameters(spec, steps),
        then=tuple(_post_step(steps, at) for at in range(len(first.then))),
        needs=_needs(first),
    )


def _needs(step: Step) -> str:
    """Say what of the tensor a method must see at once."""
    if step.method is None or step.target.matrix is None:
        return ""
    if isinstance(step.cut, int):
        return "whole tensors" if step.cut >= step.numel else f"groups of {step.cut}"
    return {"rows": "whole rows", "matrices": "whole matrices"}.get(step.cut, "")


def _post_step(steps: Sequence[Step], at: int) -> str:
    """`lines(beta=0.5)`."""
    name = steps[0].then[at][0]
    values = [step.then[at][1].model_dump(by_alias=True) for step in steps]
    shown = (f"{key}={_spread([one[key] for one in values])}" for key in values[0])
    return f"{name}({', '.join(shown)})"


def _parameters(spec: MergeSpec, steps: Sequence[Step]) -> dict[str, Value]:
    first = steps[0]
    if first.shared is None:
        return {}
    rule = None if first.rule is None else spec.rules[first.rule]
    found = {}
    for i, one in enumerate(first.inputs):
        special = rule.each.get(one.label, {}) if rule else {}
        for name in first.each[i].model_dump(by_alias=True):
            values = [step.each[i].model_dump(by_alias=True)[name] for step in steps]
            sliced = [part.each.get(one.label, {}) for part in spec.slices]
            origin = _origin(name, special, spec.each[one.label], first.rule, sliced)
            found[f"{one.label}.{name}"] = Value(_spread(values), origin)
    for name in first.shared.model_dump(by_alias=True):
        values = [step.shared.model_dump(by_alias=True)[name] for step in steps if step.shared]
        sliced = [part.shared for part in spec.slices]
        special = rule.shared if rule else {}
        origin = _origin(name, special, spec.shared, first.rule, sliced)
        found[name] = Value(_spread(values), origin)
    return found


def _origin(
    name: str,
    special: Mapping[str, Setting],
    general: Mapping[str, Setting],
    rule: int | None,
    sliced: Sequence[Mapping[str, Setting]],
) -> str:
    if name in special:
        return f"where[{rule}]"
    if any(name in settings for settings in sliced):
        return "slices"
    return "merge" if name in general else "default"


def _spread(values: Sequence[Any]) -> str:
    distinct = list(dict.fromkeys(values))
    ends = distinct if len(distinct) == 1 else (distinct[0], distinct[-1])
    return " … ".join(_shown(value) for value in ends)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower()


def as_json(plan: Plan, threads: int) -> dict[str, Any]:
    """Give the plan for machines: totals, groups, every step, every dropped tensor."""
    return {
        "name": plan.name,
        "method": plan.spec.method,
        "base": plan.spec.base,
        "models": list(plan.spec.models),
        "tensors": len(plan.steps),
        "parameters": sum(step.numel for step in plan.steps),
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "peak_bytes": plan.peak_bytes(threads),
        "passes": max((step.sweeps for step in plan.steps), default=0),
        "groups": [_group_json(group) for group in groups(plan)],
        "shards": [{"file": shard.file, "bytes": shard.size} for shard in plan.layout.shards],
        "steps": [_step_json(step) for step in plan.steps],
        "dropped": [
            {"model": one.label, "tensor": one.name, "reason": one.reason} for one in plan.dropped
        ],
    }


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "method": group.method or "copy",
        "inputs": list(group.inputs),
        "reason": group.reason,
        "tensors": dict(group.names),
        "elements": group.numel,
        "then": list(group.then),
        "needs": group.needs,
        "parameters": {
            name: {"value": value.shown, "origin": value.origin}
            for name, value in group.parameters.items()
        },
    }


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "tensor": step.name,
        "dtype": step.dtype,
        "shape": list(step.shape),
        "method": step.method or "copy",
        "inputs": [{"model": one.label, "tensor": one.name} for one in step.all_inputs],
        "reason": step.reason,
    }
