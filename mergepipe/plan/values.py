"""The values of a method's parameters for one tensor: by rule, by slice, by model, by depth."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from mergepipe.checkpoint import Checkpoint, layer_of
from mergepipe.errors import Problems
from mergepipe.method import Method, Parameters, load_post_step
from mergepipe.recipe import MergeSpec, Place, Settings, Slice, value_at

__all__ = ["Values", "is_behind"]

_EMBEDDING = re.compile(r"(embed|wte|wpe|shared\.weight)")


def is_behind(name: str) -> bool:
    """Tell whether a tensor outside of the layers comes after them."""
    return not _EMBEDDING.search(name)


class Values:
    """Works out parameters; tensors with equal ones share the same objects."""

    def __init__(self, spec: MergeSpec, donor: Checkpoint, problems: Problems) -> None:
        self.spec, self.problems = spec, problems
        self._stacks = _stack_lengths(donor)
        self._known: dict[Hashable, Parameters] = {}
        self._checked: dict[Hashable, bool] = {}

    def place(self, name: str) -> Place:
        """Relative depth: 0 for the first layer and what is before it, 1 for the last and after."""
        found = layer_of(name)
        if found is None:
            return Place(name, float(is_behind(name)), in_layers=False)
        last = self._stacks.get(found[0], 1) - 1
        return Place(name, found[1] / last if last > 0 else 0.0, in_layers=True)

    def at(
        self,
        method: Method[Any, Any],
        fit: int | None,
        part: Slice | None,
        names: Mapping[str, str],
        place: Place,
    ) -> tuple[tuple[Parameters, ...], Parameters]:
        """Give the parameters of each model and the shared ones, where rule `fit` applies.

        `names` are those that the tensor has in the models, by label: what cases of a model's
        parameters are held against.
        """
        rule = None if fit is None else self.spec.rules[fit]
        report = self.spec.place if rule is None else rule.place
        each = []
        for label, name in names.items():
            layers = (
                self.spec.each[label],
                part.each.get(label, {}) if part else {},
                rule.each.get(label, {}) if rule else {},
            )
            each.append(self._built(method.each, layers, replace(place, name=name), report, method))
        layers = (self.spec.shared, part.shared if part else {}, rule.shared if rule else {})
        shared = self._built(method.shared, layers, place, report, method)
        self._check(method, tuple(each), shared, report)
        return tuple(each), shared

    def then(self, fit: int | None, place: Place) -> tuple[tuple[str, Parameters], ...]:
        """Give the post-steps of a tensor and their parameters."""
        rule = None if fit is None else self.spec.rules[fit]
        posts = self.spec.then if rule is None or rule.then is None else rule.then
        report = self.spec.place if rule is None else rule.place
        found = []
        for post in posts:
            method = load_post_step(post.name)
            built = self._built(method.shared, (post.settings,), place, report, method)
            found.append((post.name, built))
        return tuple(found)

    def _built(
        self,
        parameters: type[Parameters],
        layers: tuple[Settings, ...],
        place: Place,
        report: str,
        method: Method[Any, Any],
    ) -> Parameters:
        """Build parameters from settings, of which the later ones win."""
        known = {field.alias or name for name, field in parameters.model_fields.items()}
        found: dict[str, Any] = {}
        for settings in layers:
            for name, setting in settings.items():
                value = value_at(setting, place) if name in known else None
                if value is not None:
                    found[name] = value
        key = (parameters, report, *((name, type(v), v) for name, v in found.items()))
        if key not in self._known:
            try:
                self._known[key] = parameters(**found)
            except ValidationError as error:
                self._known[key] = parameters.model_construct()
                self._report(report, method.name, error)
        return self._known[key]

    def _check(
        self,
        method: Method[Any, Any],
        each: tuple[Parameters, ...],
        shared: Parameters,
        report: str,
    ) -> None:
        """Report parameters that are wrong only together, once."""
        key = (method.name, report, tuple(map(id, each)), id(shared))
        if key in self._checked:
            return
        self._checked[key] = True
        try:
            method.check(each, shared)
        except ValueError as error:
            self.problems.add(report, f"{method.name}: {error}")

    def _report(self, place: str, method: str, error: ValidationError) -> None:
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            self.problems.add(place, f"{method}: {name}: {item['msg']}")


def _stack_lengths(checkpoint: Checkpoint) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for name in checkpoint.tensors:
        found = layer_of(name)
        if found is not None:
            lengths[found[0]] = max(lengths.get(found[0], 0), found[1] + 1)
    return lengths
