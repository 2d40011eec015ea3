"""Parameters of merge methods as recipes give them: numbers, words, and gradients over depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from pydantic import ValidationError

from mergepipe.errors import Problems, did_you_mean, printable
from mergepipe.method import Parameters
from mergepipe.recipe.document import Document, FieldPath

__all__ = ["Scalar", "Setting", "Settings", "at_depth", "check_settings", "field_names"]

Scalar: TypeAlias = float | int | bool | str
Setting: TypeAlias = Scalar | tuple[float, ...]
Settings: TypeAlias = Mapping[str, Setting]


def field_names(parameters: type[Parameters]) -> tuple[str, ...]:
    """Give the names a recipe uses for the fields of `parameters` (`lambda`, not `lambda_`)."""
    return tuple(field.alias or name for name, field in parameters.model_fields.items())


def _smooth_names(parameters: type[Parameters]) -> tuple[str, ...]:
    """Give the fields that may be gradients: numbers, not words, counts or switches."""
    fields = parameters.model_fields.items()
    return tuple(field.alias or name for name, field in fields if field.annotation is float)


def check_settings(
    values: Mapping[str, Any],
    parameters: type[Parameters],
    owner: str,
    place: tuple[Document, FieldPath],
    problems: Problems,
) -> dict[str, Setting]:
    """Give the valid settings among `values`; what is not valid becomes a problem.

    `owner` is the method's name as messages give it, `place` the document and the path in it.
    """
    document, path = place
    known = field_names(parameters)
    smooth = _smooth_names(parameters)
    settings: dict[str, Setting] = {}
    for name, value in values.items():
        where = document.where((*path, name))
        if name not in known:
            problems.add(where, f"{owner} has no parameter '{name}'{did_you_mean(name, known)}")
            continue
        if isinstance(value, list) and not value:
            problems.add(where, "an empty list: a gradient needs at least one value")
            continue
        if isinstance(value, list) and name not in smooth:
            problems.add(where, f"{owner} takes one value for '{name}', not a list")
            continue
        faults = [
            fault
            for one in (value if isinstance(value, list) else [value])
            for fault in _faults(parameters, name, one)
        ]
        for fault in faults:
            problems.add(where, fault)
        if not faults:
            settings[name] = tuple(value) if isinstance(value, list) else value
    return settings


def _faults(parameters: type[Parameters], name: str, value: object) -> list[str]:
    try:
        parameters.model_validate({name: value})
    except ValidationError as error:
        return [
            f"{item['msg'].replace('Input should be', 'must be')}, got {_shown(value)}"
            for item in error.errors()
            if item["loc"][:1] == (name,)
        ]
    return []


def _shown(value: object) -> str:
    kinds = {bool: " (a bool)", str: " (text)", dict: " (a mapping)", type(None): " (null)"}
    text = str(value).lower() if isinstance(value, bool) else printable(value, 60)
    return f"{text}{kinds.get(type(value), '')}"


def at_depth(setting: Setting, depth: float) -> Scalar:
    """Give the value of a setting at relative depth 0 (first layer) to 1 (last).

    A gradient of n values has equally spaced anchors and is linear between them.

    >>> at_depth((0.0, 1.0, 0.0), 0.25)
    0.5
    """
    if not isinstance(setting, tuple):
        return setting
    position = depth * (len(setting) - 1)
    low = min(int(position), len(setting) - 1)
    high = min(low + 1, len(setting) - 1)
    a, b, share = setting[low], setting[high], position - low
    if share == 0:
        return a
    # Rounding must not carry a value past an anchor: a density of 1 is the most there is.
    return min(max((1 - share) * a + share * b, min(a, b)), max(a, b))
