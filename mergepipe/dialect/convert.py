"""mergekit's configurations -> our recipes, with a word wherever mergekit would say none.

The reference is mergekit 0.1.5, computed in fp32. Where it picks at random we take the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mergepipe.dialect.configuration import OURS, read_configuration
from mergepipe.dialect.methods import METHODS
from mergepipe.dialect.outputs import output_fields
from mergepipe.dialect.reading import Origins, Reading
from mergepipe.dialect.references import References
from mergepipe.errors import Problems
from mergepipe.method import load_method
from mergepipe.recipe import Document, FieldPath

__all__ = ["convert", "is_mergekit"]


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
    names = _stage_names(parts, document, problems) if several else ["result"]
    methods = [part.get("merge_method") for part in parts if isinstance(part, dict)]
    stages = frozenset(names if several else ())
    references = References(document, problems, _parameter_names(methods), stages)
    origins: Origins = {}
    merges: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        front: FieldPath = (i,) if several else ()
        fields = part if isinstance(part, dict) else {}
        reading = Reading(fields, front, document, problems, references)
        found = read_configuration(reading, name, origins)
        merges.update(found.merges)
        rest = output_fields(reading, found.base, found.labels, origins)
        rest.update({key: value for key, value in fields.items() if key in OURS[:-1]})
        origins.update({(key,): (*front, key) for key in OURS})
    data: dict[str, Any] = {"mergepipe": 1, "models": references.models}
    if several or len(merges) > 1:
        data["stages"] = {name: {"merge": merge} for name, merge in merges.items()}
        origins = {(*_stage_path(path, merges), *path[1:]): at for path, at in origins.items()}
    else:
        data["merge"] = merges["result"]
        origins = {_merge_path(path): at for path, at in origins.items()}
    return replace(document, data={**data, **rest}, origins=origins, faults=())


def _stage_path(path: FieldPath, merges: dict[str, Any]) -> FieldPath:
    return ("stages", path[0], "merge") if path[0] in merges else path[:1]


def _merge_path(path: FieldPath) -> FieldPath:
    return ("merge", *path[1:]) if path[0] == "result" else path


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
        if isinstance(method, str) and method in METHODS:
            schema = load_method(METHODS[method].name).shared.model_json_schema()
            names.update(schema.get("properties", {}))
    return frozenset(names)
