"""The JSON Schema of recipes, so that editors complete and check them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergepipe.method import Method, Parameters, load_method, method_names
from mergepipe.recipe.adapter_server import AdapterServerFields
from mergepipe.recipe.ensembles import EnsembleFields
from mergepipe.recipe.fields import RecipeFields
from mergepipe.transplant import load_transplant, transplant_names

__all__ = ["json_schema"]

_SEARCHED: dict[str, Any] = {
    "type": "object",
    "description": "searched: {search: [0, 1]}",
    "properties": {
        "search": {
            "anyOf": [
                {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
                {
                    "type": "object",
                    "properties": {"choice": {"type": "array", "minItems": 2}},
                    "required": ["choice"],
                    "additionalProperties": False,
                },
            ]
        }
    },
    "required": ["search"],
}


# A merge service in place of `models`; `mergepipe search` knows what it means.
_SERVICE = {
    "type": "object",
    "description": "a merge service that has the models: https://HOST/v1",
    "properties": {"url": {"type": "string"}, "key_env": {"type": "string"}},
    "required": ["url"],
    "additionalProperties": False,
}


def json_schema() -> dict[str, Any]:
    """Give the JSON Schema (draft 2020-12) of a recipe, with every method's parameters."""
    schema = RecipeFields.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "mergepipe recipe"
    definitions = schema["$defs"]
    _shorten(definitions)
    merge, rule = definitions["MergeFields"], definitions["RuleFields"]
    merge["properties"]["method"] = {
        "enum": list(method_names()),
        "description": "how to merge; `mergepipe methods` lists them",
    }
    rule["properties"]["method"] = {
        "enum": list(method_names()),
        "description": "another method for these tensors",
    }
    merge["allOf"] = [_when(load_method(name)) for name in method_names()]
    # `additionalProperties` does not see the properties that `allOf` brings.
    del merge["additionalProperties"]
    merge["unevaluatedProperties"] = False
    _add_transplants(definitions["TransplantFields"])
    schema["properties"]["service"] = _SERVICE
    _add_ensemble(schema)
    _add_adapter_server(schema)
    schema["required"].remove("models")
    kinds = ("models", "service", "ensemble")
    schema["oneOf"] = [{"required": [kind]} for kind in kinds]
    return schema


def _add_ensemble(schema: dict[str, Any]) -> None:
    """Let an ensemble stand in place of `models`; its numbers may be searched."""
    section = EnsembleFields.model_json_schema(ref_template="#/$defs/{model}")
    definitions = section.pop("$defs")
    local, served = definitions["LocalFields"], definitions["ServedFields"]
    del served["properties"]["only"]
    for fields, name in ((local, "weight"), (served, "weight"), (section, "switch")):
        fields["properties"][name] = _or_gradient(fields["properties"][name])
    shorthand = {"type": "string", "description": "a folder, or org/name@revision"}
    definitions["LocalFields"] = {"anyOf": [shorthand, local]}
    schema["$defs"] |= definitions
    schema["properties"]["ensemble"] = section


def _add_adapter_server(schema: dict[str, Any]) -> None:
    """Let adapters be merged for a server, by methods of their own."""
    section = AdapterServerFields.model_json_schema(ref_template="#/$defs/{model}")
    schema["$defs"] |= section.pop("$defs", {})
    del section["properties"]["only"]
    schema["properties"]["adapter_server"] = section
    # Such a merge has other methods, and no base; what it may hold, reading it says.
    schema["properties"]["merge"] = {"anyOf": [schema["properties"]["merge"], _composition()]}


def _composition() -> dict[str, Any]:
    number = {"anyOf": [{"type": "number"}, _SEARCHED]}
    each = {"type": ["object", "null"], "additionalProperties": number}
    return {
        "type": "object",
        "properties": {
            "method": {"enum": ["lora_composition", "lora_sum"]},
            "models": {
                "anyOf": [
                    {"type": "object", "additionalProperties": each, "minProperties": 1},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1},
                ]
            },
            "rank": {"anyOf": [{"type": "integer", "minimum": 1}, _SEARCHED]},
        },
        "required": ["method", "models"],
        "additionalProperties": False,
    }


def _add_transplants(fields: dict[str, Any]) -> None:
    """Let each transplant method have its parameters beside it."""
    fields["properties"]["method"] = {
        "enum": list(transplant_names()),
        "description": "how rows are made; `mergepipe methods --transplant` lists them",
    }
    fields["allOf"] = [
        {
            "if": {"properties": {"method": {"const": name}}},
            "then": {
                "properties": dict.fromkeys(load_transplant(name).parameters.model_fields, True)
            },
        }
        for name in transplant_names()
    ]
    del fields["additionalProperties"]
    fields["unevaluatedProperties"] = False


def _shorten(definitions: dict[str, Any]) -> None:
    """Allow the short forms: a model as its path, models as their names, one glob."""
    shorthand = {"type": "string", "description": "a folder, or org/name@revision"}
    definitions["ModelFields"] = {"anyOf": [shorthand, definitions["ModelFields"]]}
    named = {"type": "string", "description": "a model, or `union`"}
    definitions["TokenizerFields"] = {"anyOf": [named, definitions["TokenizerFields"]]}
    definitions["TokenFields"] = {"anyOf": [{"const": "zero"}, definitions["TokenFields"]]}
    merge, rule = definitions["MergeFields"]["properties"], definitions["RuleFields"]["properties"]
    names = {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True}
    merge["models"] = {"anyOf": [merge["models"], names]}
    glob = rule["tensors"]["items"]
    rule["tensors"] = {
        "description": rule["tensors"]["description"],
        "anyOf": [glob, {"type": "array", "items": glob, "minItems": 1}],
    }


def _when(method: Method[Any, Any]) -> dict[str, Any]:
    """What may stand beside `method: <name>`."""
    return {
        "if": {"properties": {"method": {"const": method.name}}},
        "then": {
            "properties": {
                **_properties(method.shared),
                "models": {
                    "additionalProperties": {
                        "type": ["object", "null"],
                        "properties": _properties(method.each),
                        "additionalProperties": False,
                    }
                },
            },
            "required": ["base"] if method.needs_base else [],
        },
    }


def _properties(parameters: type[Parameters]) -> dict[str, Any]:
    fields: Mapping[str, Any] = parameters.model_json_schema().get("properties", {})
    return {name: _or_gradient(field) for name, field in fields.items()}


def _or_gradient(field: dict[str, Any]) -> dict[str, Any]:
    """A number may also be a list of numbers: anchors of a gradient over depth; or searched."""
    if field.get("type") != "number":
        return {"anyOf": [field, _SEARCHED]}
    outer: dict[str, Any] = {
        key: field[key] for key in ("description", "default", "title") if key in field
    }
    inner = {key: value for key, value in field.items() if key not in outer}
    anchors = {"type": "array", "items": {"anyOf": [inner, _SEARCHED]}, "minItems": 1}
    return {**outer, "anyOf": [inner, anchors, _SEARCHED]}
