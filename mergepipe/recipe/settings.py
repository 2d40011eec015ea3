"""Parameters of merge methods as recipes give them: by tensor, by depth, or one for all."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, TypeGuard

from pydantic import ValidationError

from mergepipe.errors import Problems, did_you_mean, printable
from mergepipe.method import Parameters
from mergepipe.recipe.document import Document, FieldPath

__all__ = [
    "Case",
    "Gradient",
    "Place",
    "Scalar",
    "Setting",
    "Settings",
    "at_depth",
    "check_settings",
    "field_names",
    "matches",
    "value_at",
]

Scalar: TypeAlias = float | int | bool | str


@dataclass(frozen=True, slots=True)
class Gradient:
    """Anchors over the depth of a stack of layers, and the value of tensors outside of it.

    Without one these take the first anchor before the stack, and the last one behind it.
    """

    anchors: tuple[Scalar, ...]
    outside: Scalar | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A value for the tensors whose name a glob fits."""

    globs: tuple[str, ...]
    value: Scalar | Gradient


Setting: TypeAlias = Scalar | Gradient | tuple[Case, ...]  # of cases the first that fits
Settings: TypeAlias = Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a model a tensor is: its name, and its depth from 0 to 1."""

    name: str
    depth: float
    in_layers: bool


def field_names(parameters: type[Parameters]) -> tuple[str, ...]:
    """Give the names a recipe uses for the fields of `parameters` (`lambda`, not `lambda_`)."""
    return tuple(field.alias or name for name, field in parameters.model_fields.items())


def _smooth_names(parameters: type[Parameters]) -> tuple[str, ...]:
    """Give the fields that may be gradients: numbers and switches, not words or counts."""
    fields = parameters.model_fields.items()
    return tuple(field.alias or name for name, field in fields if field.annotation in (float, bool))


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
    settings: dict[str, Setting] = {}
    for name, value in values.items():
        where = document.where((*path, name))
        if name not in known:
            problems.add(where, f"{owner} has no parameter '{name}'{did_you_mean(name, known)}")
            continue
        before = len(problems.found)
        for fault in _form_faults(value, name, owner):
            problems.add(where, fault)
        if len(problems.found) > before:
            continue
        setting = _setting(value)
        if name not in _smooth_names(parameters) and _has_gradient(setting):
            problems.add(where, f"{owner} takes one value for '{name}', not a list")
            continue
        for one in _scalars(setting):
            for fault in _faults(parameters, name, one):
                problems.add(where, fault)
        if len(problems.found) == before:
            settings[name] = setting
    return settings


_GRADIENT, _CASE = {"gradient", "outside"}, {"tensors", "value"}


def _form_faults(value: object, name: str, owner: str) -> Iterator[str]:
    """Say what is wrong with the form of a value, before its numbers are looked at."""
    if _is_gradient(value):
        if set(value) - _GRADIENT or not isinstance(value["gradient"], list):
            yield f"a gradient for '{name}' is {{gradient: [anchors], outside: value}}"
        else:
            yield from _form_faults(value["gradient"], name, owner)
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for one in value:
            yield from _case_faults(one, name, owner)
    elif isinstance(value, list) and not value:
        yield "an empty list: a gradient needs at least one value"


def _is_gradient(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and "gradient" in value


def _case_faults(one: object, name: str, owner: str) -> Iterator[str]:
    if not isinstance(one, dict) or set(one) - _CASE or "value" not in one:
        yield f"a list of cases for '{name}': each is {{tensors: glob, value: ...}}"
    elif not _globs(one):
        yield "`tensors` is a glob or a list of globs"
    else:
        yield from _form_faults(one["value"], name, owner)


def _globs(case: Mapping[str, Any]) -> tuple[str, ...]:
    globs = case.get("tensors", "*")
    listed = [globs] if isinstance(globs, str) else globs
    fine = isinstance(listed, list) and all(isinstance(one, str) and one for one in listed)
    return tuple(listed) if fine else ()


def _setting(value: Any) -> Setting:
    if _is_gradient(value):
        return Gradient(tuple(value["gradient"]), value.get("outside"))
    if not isinstance(value, list):
        scalar: Scalar = value
        return scalar
    if not isinstance(value[0], dict):
        return Gradient(tuple(value))
    return tuple(Case(_globs(one), _plain(_setting(one["value"]))) for one in value)


def _plain(setting: Setting) -> Scalar | Gradient:
    assert not isinstance(setting, tuple), "cases hold no cases"
    return setting


def _scalars(setting: Setting) -> Iterator[Scalar]:
    if isinstance(setting, tuple):
        for case in setting:
            yield from _scalars(case.value)
    elif isinstance(setting, Gradient):
        yield from setting.anchors
        if setting.outside is not None:
            yield setting.outside
    else:
        yield setting


def _has_gradient(setting: Setting) -> bool:
    if isinstance(setting, tuple):
        return any(isinstance(case.value, Gradient) for case in setting)
    return isinstance(setting, Gradient)


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


@cache
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{fnmatch.translate(glob)})" for glob in globs))


def matches(globs: tuple[str, ...], name: str) -> bool:
    """Tell whether any of the globs fits a tensor's name."""
    return _pattern(globs).match(name) is not None


def value_at(setting: Setting, place: Place) -> Scalar | None:
    """Give the value of a setting for one tensor; None if no case fits it."""
    if isinstance(setting, tuple):
        fitting = (case.value for case in setting if matches(case.globs, place.name))
        found = next(fitting, None)
        return None if found is None else value_at(found, place)
    if not isinstance(setting, Gradient):
        return setting
    if setting.outside is not None and not place.in_layers:
        return setting.outside
    return at_depth(setting.anchors, place.depth)


def at_depth(anchors: tuple[Scalar, ...], depth: float) -> Scalar:
    """Give the value of a gradient at relative depth 0 (first layer) to 1 (last).

    A gradient of n values has equally spaced anchors and is linear between them; switches hold
    from their anchor to the next.

    >>> at_depth((0.0, 1.0, 0.0), 0.25)
    0.5
    """
    position = depth * (len(anchors) - 1)
    low = min(int(position), len(anchors) - 1)
    high = min(low + 1, len(anchors) - 1)
    a, b, share = anchors[low], anchors[high], position - low
    if share == 0 or isinstance(a, bool | str) or isinstance(b, bool | str):
        return a
    # Rounding must not carry a value past an anchor: a density of 1 is the most there is.
    return min(max((1 - share) * a + share * b, min(a, b)), max(a, b))
