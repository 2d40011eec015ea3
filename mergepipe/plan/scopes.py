"""Which tensors share a survey over the model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from mergepipe.method import Method, Scope, load_method
from mergepipe.plan.steps import Step

__all__ = ["model_scopes", "scope_of"]


def model_scopes(steps: Sequence[Step]) -> list[list[Step]]:
    """Group the steps whose survey runs over the model; others are left out.

    Steps belong together when every model that several of them have is surveyed alike in each:
    a head that only one expert has still counts among that expert's parameters.
    """
    scopes: list[tuple[str, dict[str, Hashable], list[Step]]] = []
    for step in steps:
        keys = _keys(step)
        if not keys or step.method is None:
            continue
        for method, known, members in scopes:
            if method == step.method and all(known.get(k, v) == v for k, v in keys.items()):
                known.update(keys)
                members.append(step)
                break
        else:
            scopes.append((step.method, keys, [step]))
    return [members for _, _, members in scopes]


def _keys(step: Step) -> dict[str, Hashable]:
    """What each model's survey in this step depends on; empty if it runs over the tensor."""
    if step.method is None:
        return {}
    method: Method[Any, Any] = load_method(step.method)
    keys = {
        one.label: method.scope(each, step.shared)
        for one, each in zip(step.inputs, step.each, strict=True)
    }
    return {} if None in keys.values() else keys


def scope_of(steps: Sequence[Step]) -> Scope[Any, Any]:
    """Give what a survey over `steps` is told: sizes and parameters of every model in them."""
    sizes: dict[str, int] = {}
    each: dict[str, Any] = {}
    for step in steps:
        for one, parameters in zip(step.inputs, step.each, strict=True):
            sizes[one.label] = sizes.get(one.label, 0) + step.numel
            each.setdefault(one.label, parameters)
    assert steps[0].shared is not None, "only merged tensors are surveyed"
    return Scope(sizes, each, steps[0].shared)
