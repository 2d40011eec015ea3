"""The values of a method's parameters for one tensor: by rule, by model, by depth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from mergepipe.checkpoint import Checkpoint, layer_of
from mergepipe.errors import Problems
from mergepipe.method import Method, Parameters, load_post_step
from mergepipe.recipe import MergeSpec, Settings, at_depth

__all__ = ["Values"]

_EMBEDDING = re.compile(r"(embed|wte|wpe|shared\.weight)")


class Values:
    """Works out parameters; tensors with equal ones share the same objects."""

    def __init__(self, spec: MergeSpec, donor: Checkpoint, problems: Problems) -> None:
        self.spec, self.problems = spec, problems
        self._stacks = _stack_lengths(donor)
        self._posts: dict[object, tuple[tuple[str, Parameters], ...]] = {}
        self._known: dict[object, tuple[tuple[Parameters, ...], Parameters]] = {}

    def depth(self, name: str) -> float:
        """Relative depth: 0 for the first layer and what is before it, 1 for the last and after."""
        found = layer_of(name)
        if found is not None:
            last = self._stacks.get(found[0], 1) - 1
            return found[1] / last if last > 0 else 0.0
        return 0.0 if _EMBEDDING.search(name) else 1.0

    def at(
        self, method: Method[Any, Any], fit: int | None, labels: tuple[str, ...], depth: float
    ) -> tuple[tuple[Parameters, ...], Parameters]:
        """Give the parameters of each model and the shared ones, where rule `fit` applies."""
        key = (method.name, fit, labels, depth)
        if key not in self._known:
            self._known[key] = self._resolve(method, fit, labels, depth)
        return self._known[key]

    def then(self, fit: int | None, depth: float) -> tuple[tuple[str, Parameters], ...]:
        """Give the post-steps of a tensor and their parameters."""
        rule = None if fit is None else self.spec.rules[fit]
        posts = self.spec.then if rule is None or rule.then is None else rule.then
        key = (fit, depth)
        if key not in self._posts:
            self._posts[key] = tuple(
                (post.name, _build(load_post_step(post.name).shared, depth, post.settings, {}))
                for post in posts
            )
        return self._posts[key]

    def _resolve(
        self, method: Method[Any, Any], fit: int | None, labels: tuple[str, ...], depth: float
    ) -> tuple[tuple[Parameters, ...], Parameters]:
        rule = None if fit is None else self.spec.rules[fit]
        special = rule.each if rule is not None else {}
        try:
            each = tuple(
                _build(method.each, depth, self.spec.each[label], special.get(label, {}))
                for label in labels
            )
            exceptions = rule.shared if rule is not None else {}
            shared = _build(method.shared, depth, self.spec.shared, exceptions)
            method.check(each, shared)
        except ValueError as error:
            self._report(self.spec.place if rule is None else rule.place, method.name, error)
        else:
            return each, shared
        return tuple(method.each.model_construct() for _ in labels), method.shared.model_construct()

    def _report(self, place: str, method: str, error: ValueError) -> None:
        if not isinstance(error, ValidationError):
            self.problems.add(place, f"{method}: {error}")
            return
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            self.problems.add(place, f"{method}: {name}: {item['msg']}")


def _build(
    parameters: type[Parameters], depth: float, general: Settings, special: Settings
) -> Parameters:
    """Build parameters from the merge's settings and a rule's, which win."""
    known = {field.alias or name for name, field in parameters.model_fields.items()}
    settings: Mapping[str, Any] = {**general, **special}
    return parameters(
        **{name: at_depth(value, depth) for name, value in settings.items() if name in known}
    )


def _stack_lengths(checkpoint: Checkpoint) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for name in checkpoint.tensors:
        found = layer_of(name)
        if found is not None:
            lengths[found[0]] = max(lengths.get(found[0], 0), found[1] + 1)
    return lengths
