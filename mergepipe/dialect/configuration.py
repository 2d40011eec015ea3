"""One configuration -> its merge, or a merge for each of its modules and one that joins them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergepipe.dialect.merges import MergeReader, Part
from mergepipe.dialect.methods import METHODS, counterpart
from mergepipe.dialect.modules import divided, main_part
from mergepipe.dialect.reading import Origins, Reading
from mergepipe.errors import did_you_mean

__all__ = ["OURS", "Found", "read_configuration"]

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
OURS = ("seed", "nan_policy", "evaluate", "output")  # which mean what they mean in recipes
_MODULE = ("models", "slices", "parameters")


@dataclass(frozen=True, slots=True)
class Found:
    """Merges by their stages' names, the result last; the base, and all models as listed."""

    merges: Mapping[str, Any]
    base: str | None = None
    labels: tuple[str, ...] = ()


def read_configuration(reading: Reading, name: str, origins: Origins) -> Found:
    """Read a configuration whose result is the stage `name`, which places start with."""
    data = reading.data
    reading.check_keys(data, (*_TOP, *OURS), ())
    origins[name,] = reading.front
    asked = str(data.get("merge_method"))
    method = counterpart(asked)
    given = [key for key in ("models", "slices", "modules") if data.get(key)]
    if method is None:
        what = f"unknown method '{asked}'{did_you_mean(asked, METHODS)}"
        reading.add(("merge_method",), what)
    if len(given) != 1:
        reading.add((), "give exactly one of models, slices and modules")
    if method is None or len(given) != 1:
        return Found({name: {}})
    base = data.get("base_model")
    label = None if base is None else reading.label(base, ("base_model",))
    merges = MergeReader(reading, method, label)
    one = _Merges(reading, merges, name, origins)
    found = one.of_modules() if given == ["modules"] else {name: one.merge(name, Part(data))}
    merges.check_parameters()
    return Found(found, label, tuple(merges.labels))


@dataclass(frozen=True, slots=True)
class _Merges:
    """Puts together the merges of one configuration."""

    reading: Reading
    merges: MergeReader
    name: str
    origins: Origins

    def merge(self, stage: str, part: Part, *, whole: bool = False) -> dict[str, Any]:
        """Give the merge of a part; with `whole`, its only slice holds all layers."""
        method, base = self.merges.method, self.merges.base
        found: dict[str, Any] = {"method": method.name}
        if base is not None:
            found["base"] = base
            self.origins[stage, "base"] = (*self.reading.front, "base_model")
        read = self.merges.models
        if part.fields.get("slices") and not whole:
            read = self.merges.slices
        return {**found, **read(part, (stage,), self.origins), **method.fixed}

    def of_modules(self) -> dict[str, Any]:
        """Give a merge with rules for its modules; or one a module where their models differ."""
        parts = self._parts()
        if not parts:
            return {self.name: {}}
        main = main_part(parts)
        whole = all(_is_whole(part) for part in parts.values())
        merges = {}
        for module, part in parts.items():
            stage = self._stage(module, main)
            merges[module] = self.merge(stage, part, whole=whole or module != main)
        rules = []
        stages: dict[str, Any] = {}
        donor = self.merges.base or next(iter(_models(merges[main])), "unknown")
        for named, globs in divided(parts):
            here: dict[str, Any] = {"tensors": list(globs)}
            there = {} if named is None or named == main else merges[named]
            if named is None:
                what = "parts that are not named are the base's; mergekit leaves them out"
                self.reading.warn(("modules",), what)
                rules.append({**here, "take": donor})
            elif _copied(there):
                rules.append({**here, "take": _copied(there)})
            elif not there or _have_same_models(there, merges[main]):
                rules.append({**here, **_settings(there)})
            else:
                stage = self._stage(named, main)
                rest = {"tensors": ["*"], "take": donor}
                stages[stage] = {**there, "where": [here, rest]}
                rules.append({**here, "take": stage})
        if stages and "slices" in merges[main]:
            what = "layers of one module are put together while others merge other models"
            self.reading.add(("modules",), what, "make the other modules in a document before")
        return {**stages, self.name: {**merges[main], "where": rules}}

    def _stage(self, module: str, main: str) -> str:
        return self.name if module == main else f"{self.name}-{module}"

    def _parts(self) -> dict[str, Part]:
        """Give the modules that can be read."""
        modules, reading = self.reading.data["modules"], self.reading
        outer = (reading.layer(reading.data, ()),)
        found = {}
        for module, fields in modules.items() if isinstance(modules, dict) else ():
            at = ("modules", module)
            reading.check_keys(fields, _MODULE, at)
            given = [key for key in _MODULE[:2] if isinstance(fields, dict) and fields.get(key)]
            if len(given) != 1:
                reading.add(at, "give exactly one of models and slices")
            else:
                found[str(module)] = Part(fields, at, outer)
        if not isinstance(modules, dict):
            reading.add(("modules",), "must be a mapping of modules by their names")
        main = main_part(found) if found else ""
        cut = [name for name, part in found.items() if not _is_whole(part)]
        if any(name != main for name in cut) or (cut and len(found) < len(modules)):
            what = "layers can be put together in the language model only"
            reading.add(("modules",), what, "give `models` for the other modules")
            return {}
        return found


def _is_whole(part: Part) -> bool:
    """Tell models, or one slice of the same layers of each from the first on."""
    slices = part.fields.get("slices")
    if not slices:
        return True
    one = slices[0] if isinstance(slices, list) and len(slices) == 1 else None
    sources = one.get("sources") if isinstance(one, dict) else None
    if not isinstance(sources, list) or not all(isinstance(one, dict) for one in sources):
        return False
    ranges = [one.get("layer_range") for one in sources]
    return all(isinstance(one, list) and one[:1] == [0] and one == ranges[0] for one in ranges)


def _models(merge: Mapping[str, Any]) -> Mapping[str, Any]:
    slices = merge.get("slices")
    found: Mapping[str, Any] = slices[0]["models"] if slices else merge.get("models", {})
    return found


def _have_same_models(one: Mapping[str, Any], main: Mapping[str, Any]) -> bool:
    return "models" in main and main["models"].keys() == one["models"].keys()


def _copied(merge: Mapping[str, Any]) -> str | None:
    """Give the model that a merge is a copy of."""
    models = merge.get("models", {})
    if merge.get("method") != "passthrough" or len(models) != 1:
        return None
    label: str = next(iter(models))
    return label if models[label] == {"scale": 1.0} else None


def _settings(merge: Mapping[str, Any]) -> dict[str, Any]:
    """Give a merge's parameters as those of a rule."""
    rest = {k: v for k, v in merge.items() if k not in ("method", "base", "models")}
    models = merge.get("models", {})
    return {**{label: values for label, values in models.items() if values}, **rest}
