"""The reference of recipes' fields, from the schema that checks them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mergepipe.recipe import json_schema

__all__ = ["fields_page"]

# Definitions of the schema, in the order of a recipe: heading, and where it stands.
_PARTS = {
    "ModelFields": ("A model", "`models.LABEL`; a path alone stands for `{path: ...}`"),
    "MergeFields": ("A merge", "`merge`, `stages.NAME.merge`, `compare.NAME`"),
    "RuleFields": ("A rule", "`merge.where[]`; also each model's parameters, under its label"),
    "SliceFields": ("A slice", "`merge.slices[]`"),
    "SliceModelFields": ("A model of a slice", "`merge.slices[].models[]`"),
    "TransplantFields": ("A transplant", "`transplant`, `stages.NAME.transplant`"),
    "StageFields": ("A stage", "`stages.NAME`"),
    "TokenizerFields": ("A tokenizer", "`tokenizer`; a label or `union` alone is its `source`"),
    "TokenFields": ("A token", "`tokenizer.tokens.TEXT`"),
    "TemplateFields": ("A chat template", "`chat_template`; a label alone is that model's"),
    "EvaluateFields": ("An evaluation", "`evaluate[]`, with its evaluator's parameters"),
    "SplitFields": ("A split", "`evaluate[].split`"),
    "SearchFields": ("A search", "`search`"),
    "GenomeFields": ("A genome", "`search.genome`"),
    "HalvingFields": ("Successive halving", "`search.halving`"),
    "OutputFields": ("The output", "`output`"),
}
_WORDS = {"null": "nothing", "object": "a mapping", "boolean": "true or false", "string": "text"}


def fields_page() -> str:
    """Every field of a recipe: type, default, meaning."""
    schema = json_schema()
    lines = [
        "# Fields of a recipe",
        "",
        "Generated from the schema that checks recipes (`mergepipe schema`);",
        "[the recipe language](recipe.md) explains them. Methods' parameters stand on",
        "[their pages](methods.md), evaluators' on [theirs](evaluators.md).",
        *_fields("The recipe", "", schema),
    ]
    definitions = schema["$defs"]
    for name in (*_PARTS, *(name for name in definitions if name not in _PARTS)):
        heading, place = _PARTS.get(name, (name.removesuffix("Fields"), ""))
        forms = [definitions[name], *definitions[name].get("anyOf", ())]
        for form in (form for form in forms if "properties" in form):
            lines += _fields(heading, place, form)
    return "\n".join(lines) + "\n"


def _fields(heading: str, place: str, definition: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"## {heading}", "")
    if place:
        yield from (f"{place}.", "")
    yield "| field | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, field in definition["properties"].items():
        needed = name in definition.get("required", ())
        default = "required" if needed else f"`{json.dumps(field.get('default'))}`"
        default = "" if default == "`null`" else default
        meaning = str(field.get("description", "")).replace("|", "\\|")
        yield f"| `{name}` | {_kind(field)} | {default} | {meaning} |"


def _kind(field: Mapping[str, Any]) -> str:
    """Say what values a field takes."""
    if "$ref" in field:
        return _link(field["$ref"].rpartition("/")[2])
    if "const" in field or "enum" in field:
        return _choice(field.get("enum", [field.get("const")]))
    several = [one for one in field.get("anyOf", ()) if one.get("type") != "null"]
    if several:
        return " or ".join(dict.fromkeys(map(_kind, several)))
    inner = [one for one in _inner(field) if isinstance(one, dict) and one]
    kinds = field.get("type", "anything")
    if isinstance(kinds, list):
        return " or ".join(_WORDS.get(kind, kind) for kind in kinds)
    plural = {"array": "a list of ", "object": "names: "}.get(kinds, "")
    if plural and inner:
        return plural + _kind(inner[0])
    return _WORDS.get(kinds, kinds) + _range(field)


def _inner(field: Mapping[str, Any]) -> list[Any]:
    """Give what a list or a mapping holds."""
    patterns = list(field.get("patternProperties", {}).values())
    return [field.get("items"), *patterns, field.get("additionalProperties")]


def _link(name: str) -> str:
    heading = _PARTS.get(name, (name.removesuffix("Fields"), ""))[0]
    return f"[{heading.lower()}](#{heading.lower().replace(' ', '-')})"


def _choice(values: list[Any]) -> str:
    few = 12
    if len(values) > few:
        return "a name"
    return ", ".join(f"`{value}`" for value in values)


def _range(field: Mapping[str, Any]) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[word]:g}" for word, sign in words.items() if word in field]
    return f", {', '.join(limits)}" if limits else ""
