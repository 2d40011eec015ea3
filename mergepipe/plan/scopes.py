"""Which tensors share a survey over the model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from mergepipe.method import Scope
from mergepipe.plan.steps import Step

__all__ = ["model_scopes", "scope_of"]


def model_scopes(steps: Sequence[Step], call: int = 0) -> list[list[Step]]:
    """Group the steps whose survey runs over the model; others are left out.

    `call` says whose survey: 0 for the method's, 1 for the first post-step's, and so on.

    Steps belong together when every model that several of them have is surveyed alike in each:
    a head that only one expert has still counts among that expert's parameters.
    """
    scopes: list[tuple[str, dict[str, Hashable], list[Step]]] = []
    for step in steps:
        keys = _keys(step, call)
        if not keys:
            continue
        name = step.calls[call].method.name
        for method, known, members in scopes:
            if method == name and all(known.get(k, v) == v for k, v in keys.items()):
                known.update(keys)
                members.append(step)
                break
        else:
            scopes.append((name, keys, [step]))
    return [members for _, _, members in scopes]


def _keys(step: Step, at: int) -> dict[str, Hashable]:
    """What each model's survey in this step depends on; empty if it runs over the tensor."""
    calls = step.calls
    if at >= len(calls):
        return {}
    call = calls[at]
    keys = {
        one.label: call.method.scope(each, call.shared)
        for one, each in zip(step.inputs, call.each, strict=True)
    }
    return {} if None in keys.values() else keys


def scope_of(steps: Sequence[Step], call: int = 0) -> Scope[Any, Any]:
    """Give what a survey over `steps` is told: sizes and parameters of every model in them."""
    sizes: dict[str, int] = {}
    each: dict[str, Any] = {}
    for step in steps:
        for one, parameters in zip(step.inputs, step.calls[call].each, strict=True):
            sizes[one.label] = sizes.get(one.label, 0) + step.numel
            each.setdefault(one.label, parameters)
    targets = tuple(step.target for step in steps)
    return Scope(sizes, each, steps[0].calls[call].shared, targets)
