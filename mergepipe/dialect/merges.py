"""The merge of one configuration of mergekit: models or slices, and their parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergepipe.dialect.methods import IGNORED, Counterpart
from mergepipe.dialect.reading import Origins, Reading
from mergepipe.dialect.values import Layer, first_anchors, native_value
from mergepipe.errors import did_you_mean
from mergepipe.recipe import FieldPath

__all__ = ["MergeReader", "Part"]

_MODEL, _SOURCE = ("model", "parameters"), ("model", "layer_range", "parameters")
_SLICE = ("sources", "base_model", "residual_weight", "parameters")


@dataclass(frozen=True, slots=True)
class Part:
    """What stands under `models` or `slices`, of the whole model or of one of its modules."""

    fields: Mapping[str, Any]
    path: FieldPath = ()
    outer: tuple[Layer, ...] = ()  # parameters of what it is in


@dataclass
class MergeReader:
    """Reads the merges of one configuration, which share a method and a base."""

    reading: Reading
    method: Counterpart
    base: str | None
    labels: list[str] = field(default_factory=list)  # of all models, as they are listed

    def models(self, part: Part, path: FieldPath, origins: Origins) -> dict[str, Any]:
        """Give a merge of whole models, without its method and base."""
        reading = self.reading
        flat = part.fields.get("slices")  # one slice of all layers
        key: FieldPath = (*part.path, "slices", 0, "sources") if flat else (*part.path, "models")
        entries = flat[0].get("sources") if flat else part.fields.get("models")
        outer = self._outer(part)
        if flat:
            outer = (reading.layer(flat[0], (*part.path, "slices", 0)), *outer)
        found: dict[str, dict[str, Any]] = {}
        for _, entry, at in reading.entries(entries, key, _SOURCE if flat else _MODEL):
            label = reading.label(entry.get("model"), (*at, "model"))
            origins.update({(*path, "models", label): (*reading.front, *at)})
            if label in found:
                reading.add(at, "the same model twice", "add the weights up")
            self.labels.append(label)
            if label == self.base and not self.method.weighs_base:
                self._warn_unread(entry, at)
                continue
            found[label] = self._each(entry, at, outer)
        found = self._with_base(found, outer)
        return {"models": found, **self._shared(outer, path, origins)}

    def _outer(self, part: Part) -> tuple[Layer, ...]:
        return (self.reading.layer(part.fields, part.path), *part.outer)

    def _with_base(
        self, found: dict[str, dict[str, Any]], outer: tuple[Layer, ...]
    ) -> dict[str, dict[str, Any]]:
        """Put the base among the models where mergekit would, and say so."""
        if self.base is not None and self.base not in found and self._adds_base(outer):
            what = "mergekit averages the base in, though it is not among the models; so do we"
            self.reading.warn(("base_model",), what)
            found[self.base] = self._each({}, (), outer)
        self._say_base(found)
        if self.method.weighs_base and self.base in found:  # it is the first input
            found = {self.base: found.pop(self.base), **found}
        return found

    def _adds_base(self, outer: tuple[Layer, ...]) -> bool:
        """Tell whether mergekit takes a base that is not listed for one of the models."""
        if self.method.name == "linear":
            return any("weight" in settings for settings, _ in outer)
        return self.method.name == "karcher"

    def _say_base(self, found: Mapping[str, Any]) -> None:
        if self.method.base == "unused" and self.base is not None and self.base not in found:
            what = f"{self.method.name} does not read a base; it gives the configuration only"
            self.reading.warn(("base_model",), what)
        if self.base is None and not self.reading.references.are_files:
            first = next(iter(found), "the first")
            what = f"no base_model: configuration and tokenizer are those of {first}"
            self.reading.warn(("merge_method",), f"{what} (mergekit picks a model at random)")

    def _warn_unread(self, entry: Mapping[str, Any], at: FieldPath) -> None:
        for name in self.reading.layer(entry, at)[0]:
            self.reading.warn((*at, "parameters", name), f"'{name}' of the base has no effect")

    def _each(self, entry: Mapping[str, Any], at: FieldPath, outer: Sequence[Layer]) -> Any:
        """Give a model's parameters."""
        own = self.reading.layer(entry, at)
        for name in own[0]:
            if name in self.method.shared:
                what = f"'{name}' is one for the whole merge; under a model it has no effect"
                self.reading.warn((*at, "parameters", name), what)
        found = {}
        for name, meaning in self.method.each.items():
            value = self._value(name, meaning, [own, *outer])
            if value is not None:
                found[meaning.name] = value
        return found

    def _shared(self, layers: Sequence[Layer], path: FieldPath, origins: Origins) -> dict[str, Any]:
        found = {}
        for name, meaning in self.method.shared.items():
            value = self._value(name, meaning, layers)
            if value is not None:
                found[meaning.name] = value
            at = next((place for values, place in layers if name in values), layers[-1][1])
            origins.update({(*path, meaning.name): (*at, name)})
        return found

    def _value(self, name: str, meaning: Any, layers: Sequence[Layer]) -> Any:
        reading = self.reading
        value = native_value(name, meaning, layers, reading.document, reading.problems)
        return first_anchors(value) if reading.references.are_files else value

    def slices(self, part: Part, path: FieldPath, origins: Origins) -> dict[str, Any]:
        """Give a merge of layers put together, without its method and base."""
        reading, outer = self.reading, self._outer(part)
        found = []
        for i, entry, at in reading.entries(part.fields["slices"], (*part.path, "slices"), _SLICE):
            place = (*path, "slices", i)
            origins.update({place: (*reading.front, *at)})
            if entry.get("residual_weight") is not None:
                what = "residual_weight has no effect, in mergekit neither"
                reading.warn((*at, "residual_weight"), what)
            one: dict[str, Any] = {}
            layers = (reading.layer(entry, at), *outer)
            if entry.get("base_model") is not None:
                one["base"] = reading.label(entry["base_model"], (*at, "base_model"))
            one["models"] = self._sources(entry, at, layers, place, origins)
            one.update(self._shared(layers, place, origins))
            found.append(one)
        counts = [len(one["models"]) for one in found]
        if counts and counts[-1] > counts[0]:
            what = "mergekit would leave sources of the last slice out of the final norm and head"
            reading.warn((*part.path, "slices"), f"{what}; here all are merged")
        return {"slices": found}

    def _sources(
        self,
        entry: Mapping[str, Any],
        place: FieldPath,
        outer: Sequence[Layer],
        path: FieldPath,
        origins: Origins,
    ) -> dict[str, Any]:
        reading, base = self.reading, self.base
        if entry.get("base_model") is not None:
            base = reading.label(entry["base_model"], (*place, "base_model"))
        models: dict[str, Any] = {}
        for _, source, at in reading.entries(entry.get("sources"), (*place, "sources"), _SOURCE):
            label = reading.label(source.get("model"), (*at, "model"))
            origins.update({(*path, "models", label): (*reading.front, *at)})
            if label in models:
                reading.add(
                    at,
                    "the same model twice in one slice",
                    "make two slices of it, or merge it in a stage before",
                )
            self.labels.append(label)
            own = {"layers": source.get("layer_range")}
            if label != base or self.method.weighs_base:
                own.update(self._each(source, at, outer))
            models[label] = own
            if own["layers"] is None:
                reading.add(at, "layer_range is missing")
        return models

    def check_parameters(self) -> None:
        """Warn of parameters that this method does not have, wherever they stand."""
        reading, method = self.reading, self.method
        known = {*method.each, *method.shared, *IGNORED}
        layers = list(_all_layers(reading, reading.data, ()))
        for settings, path in layers:
            for name in settings:
                where = reading.document.where((*path, name))
                if name in method.unused:
                    reading.problems.warn(where, f"'{name}' has no effect in {method.name}")
                elif name not in known:
                    what = f"{reading.data['merge_method']} has no parameter '{name}'"
                    near = did_you_mean(str(name), known)
                    reading.problems.warn(where, f"{what}; mergekit passes over it{near}")
        if method.name == "ties" and not any("density" in settings for settings, _ in layers):
            what = "no density: mergekit's default of 1.0 trims nothing"
            reading.warn(("merge_method",), what)


def _all_layers(reading: Reading, fields: Any, path: FieldPath) -> Iterator[Layer]:
    """Give all `parameters` in a configuration."""
    yield reading.layer(fields, path)
    inside: dict[FieldPath, Any] = {}
    for key in ("models", "slices", "sources", "modules") if isinstance(fields, dict) else ():
        listed = fields.get(key)
        numbered = enumerate(listed) if isinstance(listed, list) else ()
        named = listed.items() if isinstance(listed, dict) else numbered
        inside.update({(key, at): one for at, one in named})
    for at, one in inside.items():
        yield from _all_layers(reading, one, (*path, *at))
