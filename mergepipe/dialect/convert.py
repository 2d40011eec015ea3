"""mergekit's configurations -> our recipes, with a word wherever mergekit would say none.

The reference is mergekit 0.1.5, computed in fp32. Where it picks at random we take the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mergepipe.dialect.methods import IGNORED, METHODS, REQUIRED, Counterpart, Meaning
from mergepipe.dialect.references import References
from mergepipe.dialect.values import Layer, native_value
from mergepipe.errors import Problems, did_you_mean
from mergepipe.method import load_method, method_names
from mergepipe.recipe import Document, FieldPath

__all__ = ["convert", "is_mergekit"]

_TOP = (
    "models",
    "slices",
    "modules",
    "merge_method",
    "base_model",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "parameters",
    "name",
)
_MODEL, _SOURCE = ("model", "parameters"), ("model", "layer_range", "parameters")
_SLICE = ("sources", "base_model", "residual_weight", "parameters")
_TOKENIZER = ("source", "tokens", "pad_to_multiple_of")
_DTYPES = ("bfloat16", "float16", "float32")


def is_mergekit(data: Any) -> bool:
    """Tell mergekit's configurations from our recipes."""
    return isinstance(data, dict) and "merge_method" in data and "mergepipe" not in data


def convert(document: Document, problems: Problems) -> Document:
    """Give the recipe that a configuration of mergekit means; its faults go to `problems`.

    Places in the result are shown as those of the configuration.
    """
    problems.found.extend(document.faults)
    several = isinstance(document.data, list)
    parts = document.data if several else [document.data]
    names = _stage_names(parts, document, problems) if several else ["merge"]
    methods = [part.get("merge_method") for part in parts if isinstance(part, dict)]
    references = References(
        document, problems, _parameter_names(methods), frozenset(names if several else ())
    )
    origins: dict[FieldPath, FieldPath] = {}
    stages, outputs = {}, []
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        front: FieldPath = (i,) if several else ()
        one = _Configuration(part, front, document, problems, references)
        path: FieldPath = ("stages", name, "merge") if several else ("merge",)
        stages[name] = {"merge": one.merge(path, origins)}
        outputs.append(one)
        origins[path] = front
    last = outputs[-1]
    data: dict[str, Any] = {"mergepipe": 1, "models": references.models}
    data.update({"stages": stages} if several else stages["merge"])
    data.update(last.rest(origins))
    return replace(document, data=data, origins=origins, faults=())


def _stage_names(parts: Sequence[Any], document: Document, problems: Problems) -> list[str]:
    """Give the name of each document; the one without a name is the result, and comes last."""
    names = [part.get("name") if isinstance(part, dict) else None for part in parts]
    for i, name in enumerate(names):
        if name is None and i + 1 < len(names):
            what = "a document without `name:` is the result, and comes last"
            problems.add(document.where((i,)), what, "give it a name, or move it to the end")
    return [str(name) if name is not None else "result" for name in names]


def _parameter_names(methods: Sequence[Any]) -> frozenset[str]:
    """Names that a model's label would be taken for."""
    names: set[str] = set()
    for method in methods:
        if method in METHODS:
            schema = load_method(METHODS[method].name).shared.model_json_schema()
            names.update(schema.get("properties", {}))
    return frozenset(names)


class _Configuration:
    """One configuration; holds what every part of it needs to be read."""

    def __init__(
        self,
        data: Any,
        front: FieldPath,
        document: Document,
        problems: Problems,
        references: References,
    ) -> None:
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        self.front, self.document, self.problems = front, document, problems
        self.references = references
        self.method: Counterpart | None = None
        self.labels: list[str] = []
        self.base: str | None = None
        self._check_keys(self.data, _TOP, front)

    def _where(self, *path: str | int) -> str:
        return self.document.where((*self.front, *path))

    def _check_keys(self, fields: Any, known: Sequence[str], path: FieldPath) -> None:
        for key in fields if isinstance(fields, dict) else ():
            if key not in known:
                what = f"unknown field, which mergekit passes over{did_you_mean(key, known)}"
                self.problems.warn(self.document.where((*path, key)), what)

    def merge(self, path: FieldPath, origins: dict[FieldPath, FieldPath]) -> dict[str, Any]:
        """Give the merge."""
        name = self.data.get("merge_method")
        self.method = _counterpart(str(name))
        if self.method is None:
            self.problems.add(
                self._where("merge_method"),
                f"unknown method '{name}'{did_you_mean(str(name), METHODS)}",
            )
            return {}
        given = [key for key in ("models", "slices", "modules") if self.data.get(key)]
        if len(given) != 1:
            self.problems.add(self._where(), "give exactly one of models, slices and modules")
            return {}
        if given == ["modules"]:
            self.problems.add(
                self._where("modules"),
                "parts of a model (`modules`) are not read here",
                "write a recipe with `where` rules over the parts' tensors, such as "
                "model.vision_tower.*",
            )
            return {}
        base = self.data.get("base_model")
        if base is not None:
            self.base = self.references.label(base, (*self.front, "base_model"))
        merge: dict[str, Any] = {"method": self.method.name}
        if self.base is not None:
            merge["base"] = self.base
            origins.update({(*path, "base"): (*self.front, "base_model")})
        if given == ["models"]:
            merge["models"] = self._models(path, origins)
            merge.update(self._shared([self._layer(self.data, ())], path, origins))
        else:
            merge["slices"] = self._slices(path, origins)
        merge.update(self.method.fixed)
        self._check_parameters()
        return merge

    def _layer(self, fields: Any, path: FieldPath) -> Layer:
        parameters = fields.get("parameters") if isinstance(fields, dict) else None
        place = (*self.front, *path, "parameters")
        return (parameters if isinstance(parameters, dict) else {}, place)

    def _models(
        self, path: FieldPath, origins: dict[FieldPath, FieldPath]
    ) -> dict[str, dict[str, Any]]:
        assert self.method is not None, "read before"
        found: dict[str, dict[str, Any]] = {}
        for i, entry, at in self._entries(self.data["models"], ("models",), _MODEL):
            label = self.references.label(entry.get("model"), (*at, "model"))
            origins.update({(*path, "models", label): at})
            if label in found:
                self.problems.add(
                    self.document.where(at), "the same model twice", "add the weights up"
                )
            self.labels.append(label)
            if label == self.base and not self.method.weighs_base:
                self._warn_unread(entry, at)
                continue
            found[label] = self._each(entry, ("models", i), [])
        if self.method.name == "karcher" and self.base is not None and self.base not in found:
            what = "mergekit averages the base in, though it is not among the models; so do we"
            self.problems.warn(self._where("base_model"), what)
            found[self.base] = {}
        self._say_base(found)
        if self.method.weighs_base and self.base in found:  # it is the first input
            found = {self.base: found.pop(self.base), **found}
        return found

    def _entries(
        self, entries: Any, path: FieldPath, known: Sequence[str]
    ) -> Iterator[tuple[int, dict[str, Any], FieldPath]]:
        if not isinstance(entries, list):
            self.problems.add(self._where(*path), "must be a list")
            return
        for i, entry in enumerate(entries):
            at = (*self.front, *path, i)
            if not isinstance(entry, dict):
                self.problems.add(self.document.where(at), "must be a mapping")
                continue
            self._check_keys(entry, known, at)
            yield i, entry, at

    def _say_base(self, found: Mapping[str, Any]) -> None:
        assert self.method is not None, "read before"
        where = self._where("base_model" if self.base else "merge_method")
        if self.method.base == "unused" and self.base is not None and self.base not in found:
            what = f"{self.method.name} does not read a base; it gives the configuration only"
            self.problems.warn(where, what)
        if self.base is None:
            first = next(iter(found), "the first")
            what = f"no base_model: configuration and tokenizer are those of {first}"
            self.problems.warn(where, f"{what} (mergekit picks a model at random)")

    def _warn_unread(self, entry: Mapping[str, Any], at: FieldPath) -> None:
        for name in entry.get("parameters") or {}:
            place = self.document.where((*at, "parameters", name))
            self.problems.warn(place, f"'{name}' of the base has no effect")

    def _each(self, entry: Mapping[str, Any], path: FieldPath, between: list[Layer]) -> Any:
        """Give a model's parameters."""
        assert self.method is not None, "read before"
        own = self._layer(entry, path)
        for name in own[0]:
            if name in self.method.shared:
                what = f"'{name}' is one for the whole merge; under a model it has no effect"
                self.problems.warn(self.document.where((*own[1], name)), what)
        layers = [own, *between, self._layer(self.data, ())]
        found = {}
        for name, meaning in self.method.each.items():
            value = native_value(name, meaning, layers, self.document, self.problems)
            if value is not None:
                found[meaning.name] = value
        return found

    def _shared(
        self, layers: Sequence[Layer], path: FieldPath, origins: dict[FieldPath, FieldPath]
    ) -> dict[str, Any]:
        assert self.method is not None, "read before"
        found = {}
        for name, meaning in self.method.shared.items():
            value = native_value(name, meaning, layers, self.document, self.problems)
            if value is not None:
                found[meaning.name] = value
            at = next((place for values, place in layers if name in values), layers[-1][1])
            origins.update({(*path, meaning.name): (*at, name)})
        return found

    def _slices(self, path: FieldPath, origins: dict[FieldPath, FieldPath]) -> list[dict[str, Any]]:
        found = []
        for i, entry, at in self._entries(self.data["slices"], ("slices",), _SLICE):
            origins.update({(*path, "slices", i): at})
            if entry.get("residual_weight") is not None:
                place = self.document.where((*at, "residual_weight"))
                self.problems.warn(place, "residual_weight has no effect, in mergekit neither")
            one: dict[str, Any] = {}
            between = self._layer(entry, ("slices", i))
            if entry.get("base_model") is not None:
                one["base"] = self.references.label(entry["base_model"], (*at, "base_model"))
            one["models"] = self._sources(entry, i, between, (*path, "slices", i), origins)
            layers = [between, self._layer(self.data, ())]
            one.update(self._shared(layers, (*path, "slices", i), origins))
            found.append(one)
        counts = [len(one["models"]) for one in found]
        if counts and counts[-1] > counts[0]:
            what = "mergekit would leave sources of the last slice out of the final norm and head"
            self.problems.warn(self._where("slices"), f"{what}; here all are merged")
        return found

    def _sources(
        self,
        entry: Mapping[str, Any],
        i: int,
        between: Layer,
        path: FieldPath,
        origins: dict[FieldPath, FieldPath],
    ) -> dict[str, Any]:
        assert self.method is not None, "read before"
        base = entry.get("base_model") or self.base
        models: dict[str, Any] = {}
        for j, source, at in self._entries(entry.get("sources"), ("slices", i, "sources"), _SOURCE):
            label = self.references.label(source.get("model"), (*at, "model"))
            origins.update({(*path, "models", label): at})
            if label in models:
                self.problems.add(
                    self.document.where(at),
                    "the same model twice in one slice",
                    "make two slices of it, or merge it in a stage before",
                )
            self.labels.append(label)
            own = {"layers": source.get("layer_range")}
            if label != base or self.method.weighs_base:
                own.update(self._each(source, ("slices", i, "sources", j), [between]))
            models[label] = own
            if own["layers"] is None:
                self.problems.add(self.document.where(at), "layer_range is missing")
        return models

    def _check_parameters(self) -> None:
        """Warn of parameters that this method does not have, wherever they stand."""
        assert self.method is not None, "read before"
        known = {*self.method.each, *self.method.shared, *IGNORED}
        for settings, path in self._all_layers():
            for name in settings:
                where = self.document.where((*path, name))
                if name in self.method.unused:
                    self.problems.warn(where, f"'{name}' has no effect in {self.method.name}")
                elif name not in known:
                    what = f"{self.data['merge_method']} has no parameter '{name}'"
                    near = did_you_mean(name, known)
                    self.problems.warn(where, f"{what}; mergekit passes over it{near}")
        if self.method.name == "ties" and not any("density" in s for s, _ in self._all_layers()):
            what = "no density: mergekit's default of 1.0 trims nothing"
            self.problems.warn(self._where("merge_method"), what)

    def _all_layers(self) -> Iterator[Layer]:
        yield self._layer(self.data, ())
        for key in ("models", "slices"):
            entries = self.data.get(key)
            for i, entry in enumerate(entries if isinstance(entries, list) else ()):
                yield self._layer(entry, (key, i))
                sources = entry.get("sources") if isinstance(entry, dict) else None
                for j, source in enumerate(sources if isinstance(sources, list) else ()):
                    yield self._layer(source, (key, i, "sources", j))

    def rest(self, origins: dict[FieldPath, FieldPath]) -> dict[str, Any]:
        """Give what is not the merge: dtype, tokenizer, chat template."""
        found: dict[str, Any] = {}
        dtype = self._dtype()
        if dtype is not None:
            found["output"] = {"dtype": dtype}
        tokenizer = self._tokenizer()
        if tokenizer is not None:
            found["tokenizer"] = tokenizer
        if self.data.get("chat_template") is not None:
            found["chat_template"] = self._chat_template()
        for name in ("tokenizer", "chat_template"):
            origins[(name,)] = (*self.front, name)
        return found

    def _dtype(self) -> str | None:
        key = "out_dtype" if self.data.get("out_dtype") else "dtype"
        value = self.data.get(key)
        if value is None:
            return None
        name = str(value).removeprefix("torch.")
        if name not in _DTYPES:
            self.problems.add(
                self._where(key), f"'{value}' cannot be written", f"one of {', '.join(_DTYPES)}"
            )
            return None
        if self.data.get("dtype") not in (None, "float32", "torch.float32"):
            what = "mergekit computes in this dtype; here it is fp32, rounded once at the end"
            self.problems.warn(self._where("dtype"), what)
        return name

    def _tokenizer(self) -> str | None:
        """Give whose tokenizer the result gets; None for the base's."""
        key = "tokenizer" if self.data.get("tokenizer") is not None else "tokenizer_source"
        asked = self.data.get(key)
        if asked is None:
            return None
        if isinstance(asked, dict):
            self._check_keys(asked, _TOKENIZER, (*self.front, key))
            for part in ("tokens", "pad_to_multiple_of"):
                if asked.get(part):
                    self.problems.add(
                        self._where(key, part),
                        "rows of single words cannot be chosen yet",
                        "leave it out where the vocabularies are the same",
                    )
            asked = asked.get("source", "union")
        if asked == "union":
            what = "vocabularies are not united yet: they must be the same, and are compared"
            self.problems.warn(self._where(key), what)
            return None
        if asked == "base":
            return self.base
        return self.references.label(asked, (*self.front, key))

    def _chat_template(self) -> Any:
        asked = self.data["chat_template"]
        if asked == "auto":
            what = "'auto': the first model's chat template (mergekit: the commonest)"
            self.problems.warn(self._where("chat_template"), what)
            return self.labels[0] if self.labels else self.base
        return {"jinja": _template(str(asked))}


def _counterpart(name: str) -> Counterpart | None:
    """Give the method of ours that a name of mergekit's, or of a plugin, stands for."""
    if name in METHODS or name not in method_names():
        return METHODS.get(name)
    method = load_method(name)
    base: Literal["required", "optional", "unused"] = "unused"
    if method.uses_base(named=True):
        base = "required" if method.needs_base else "optional"
    each, shared = (
        {
            key: Meaning(key, REQUIRED if one.is_required() else one.default)
            for key, one in parameters.model_fields.items()
        }
        for parameters in (method.each, method.shared)
    )
    return Counterpart(name, base, each, shared)


def _template(name: str) -> str:
    """Give the text of a template that mergekit has under this name; else it is a text itself."""
    found = find_spec("mergekit")
    for place in (found.submodule_search_locations or ()) if found else ():
        file = Path(place) / "_data" / "chat_templates" / f"{name}.jinja"
        if name.isidentifier() and file.is_file():
            return file.read_text(encoding="utf-8")
    return name
