"""Document -> fields of a recipe, and what is wrong with it in the user's words."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from mergepipe.errors import Problems, did_you_mean, printable
from mergepipe.recipe.beside import BesideFields, RetentionFields
from mergepipe.recipe.document import Document, FieldPath
from mergepipe.recipe.fields import (
    EvaluateFields,
    MergeFields,
    ModelFields,
    OutputFields,
    RecipeFields,
    RuleFields,
    SliceFields,
    SplitFields,
    StageFields,
    TokenFields,
    TokenizerFields,
    TransplantFields,
)
from mergepipe.recipe.publish import PublishFields
from mergepipe.recipe.search import GenomeFields, HalvingFields, SearchFields

__all__ = ["read_fields"]


def read_fields(document: Document, problems: Problems) -> tuple[RecipeFields | None, bool]:
    """Give the fields of a recipe, and whether that is all of it.

    Faults go to `problems`; the parts that have none are given, so that they can be checked too.
    """
    try:
        return RecipeFields.model_validate(document.data), True
    except ValidationError as error:
        _report(error, document, problems)
        rest = _without_faults(document.data, error)
    try:
        return RecipeFields.model_validate(rest), False
    except ValidationError:
        return None, False


def _without_faults(data: Any, error: ValidationError) -> Any:
    """Leave out the parts of a recipe that have faults: a model, a stage, `where`, a field."""
    if not isinstance(data, dict):
        return data
    rest = copy.deepcopy(data)
    for item in error.errors():
        _drop(rest, _part(item["loc"]))
    rest["mergepipe"] = 1
    rest["models"] = rest.get("models") or {"unknown": "."}
    return rest


def _part(path: FieldPath) -> FieldPath:
    if path[0] == "stages":
        return path[:4] if path[3:4] == ("where",) else path[:2]
    alone = path[0] in {"models", "beside"} or path[:2] == ("merge", "where")
    return path[:2] if alone else path[:1]


def _drop(data: Any, path: FieldPath) -> None:
    """Delete the field at `path` if it is there, and a mapping that this leaves empty."""
    key, rest = path[0], path[1:]
    if not isinstance(data, dict) or key not in data:
        return
    if rest:
        _drop(data[key], rest)
    if not rest or not data[key] or not isinstance(data[key], dict):
        del data[key]


def _report(error: ValidationError, document: Document, problems: Problems) -> None:
    """Turn pydantic's errors into problems with a line, the field, and what to write."""
    for item in error.errors(include_url=False):
        # A key that is wrong itself (a label) is reported as [..., key, "[key]"].
        path = tuple(part for part in item["loc"] if part != "[key]")
        problems.add(document.where(path), *_explain(item, path))


def _explain(item: Any, path: FieldPath) -> tuple[str, str]:
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        return f"unknown field{did_you_mean(str(path[-1]), _known(path))}", ""
    if kind == "missing":
        return "required, but missing", ""
    if kind == "too_short" or value in ([], ""):
        return "empty: give at least one", ""
    message = {
        "dict_type": "must be a mapping (`name: value`)",
        "model_type": "must be a mapping (`name: value`)",
        "string_pattern_mismatch": "a name has letters, digits, '_', '.' and '-' only",
    }.get(kind, item["msg"].replace("Input should be", "must be").replace("Value error, ", ""))
    return f"{message}, got {_shown(value)}", ""


def _shown(value: object) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (a bool)"
    if isinstance(value, str):
        return f"'{printable(value, 60)}' (text)"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return printable(value, 60)


_INSIDE: dict[str, type[BaseModel]] = {
    "search": SearchFields,
    "genome": GenomeFields,
    "halving": HalvingFields,
    "merge": MergeFields,
    "transplant": TransplantFields,
    "slices": SliceFields,
    "output": OutputFields,
    "publish": PublishFields,
    "where": RuleFields,
    "models": ModelFields,
    "stages": StageFields,
    "evaluate": EvaluateFields,
    "beside": BesideFields,
    "retention": RetentionFields,
    "split": SplitFields,
    "tokenizer": TokenizerFields,
    "tokens": TokenFields,
}


_KINDS = ("ensemble", "service", "adapter_server")  # what other recipes have, read by themselves


def _known(path: FieldPath) -> Iterator[str]:
    """Give the fields that could stand where the last part of `path` stands."""
    names = [part for part in path[:-1] if isinstance(part, str) and part in _INSIDE]
    return iter(_INSIDE[names[-1]].model_fields if names else (*RecipeFields.model_fields, *_KINDS))
