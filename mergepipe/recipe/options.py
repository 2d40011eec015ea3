"""`--set path.to.field=value`: a recipe with some of its fields set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mergepipe.errors import InputError, Problem, printable
from mergepipe.recipe.document import MAX_DEPTH, Document, FieldPath, read_text

__all__ = ["override"]

_INDEX = re.compile(r"[0-9]{1,6}")


def override(document: Document, settings: Sequence[str]) -> Document:
    """Apply `--set path.to.field=value` options; values are read as YAML.

    Raises
    ------
    InputError
        if an option has no `=`, names no place in the recipe, or its value is not YAML.

    """
    data, paths = document.data, list(document.overridden)
    for setting in settings:
        name, separator, text = setting.partition("=")
        option = f"--set {name.strip()}"
        if not separator or not name.strip():
            raise InputError(
                Problem(f"--set {printable(setting, 80)}", "no value", "write field=value")
            )
        parts = tuple(name.strip().split("."))
        if len(parts) > MAX_DEPTH:
            raise InputError(Problem(option, f"nested deeper than {MAX_DEPTH} levels"))
        data, path = _replaced(data, parts, _option_value(option, text), option)
        paths.append(path)
    return replace(document, data=data, overridden=tuple(paths))


def _option_value(option: str, text: str) -> Any:
    value, _, problems = read_text(text, option)
    problems.raise_any()
    return value


def _replaced(data: Any, parts: tuple[str, ...], value: Any, option: str) -> tuple[Any, FieldPath]:
    """`data` with the field at `parts` set, and its path; missing mappings are made on the way."""
    if not parts:
        return value, ()
    if isinstance(data, list):
        at = int(parts[0]) if _INDEX.fullmatch(parts[0]) else len(data)
        if at >= len(data):
            what = f"the list has {len(data)} items, no {parts[0]}"
            raise InputError(Problem(option, what, "count from 0"))
        inner, path = _replaced(data[at], parts[1:], value, option)
        return [*data[:at], inner, *data[at + 1 :]], (at, *path)
    if data is not None and not isinstance(data, dict):
        raise InputError(Problem(option, f"'{parts[0]}' would go inside a plain value"))
    fields = dict(data or {})
    # A label may hold dots: `models.llama-3.1.path`.
    size = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in fields), 1)
    key = ".".join(parts[:size])
    fields[key], path = _replaced(fields.get(key), parts[size:], value, option)
    return fields, (key, *path)
