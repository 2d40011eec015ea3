"""mergekit's parameter values -> ours: filters become cases, gradients say what is outside.

mergekit looks a value up per source, then per slice, then for the whole merge, and takes the
first whose filter is in the tensor's name. A gradient runs over the layers; what is outside of
them, before and behind, takes its first value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergepipe.dialect.methods import REQUIRED, Meaning
from mergepipe.errors import Problems, printable
from mergepipe.recipe import Document, FieldPath

__all__ = ["Layer", "first_anchors", "native_default", "native_value"]

Layer = tuple[Mapping[str, Any], FieldPath]  # parameters, and where they stand

_EVERYTHING = (None, "*")


def native_value(
    name: str,
    meaning: Meaning,
    layers: Sequence[Layer],
    document: Document,
    problems: Problems,
) -> Any:
    """Give a parameter's value as our recipes write it; None where nothing gives it.

    `layers` go from the most special to the most general.
    """
    cases: list[dict[str, Any]] = []
    for settings, path in layers:
        place = (*path, name)
        conditions = list(_conditions(settings.get(name)))
        for at, one in enumerate(conditions):
            _check_condition(one, document.where(place), problems)
            value = _changed(one.get("value"), meaning, document.where(place), problems)
            _say_outside(value, one, document.where(place), problems)
            if one.get("filter") in _EVERYTHING:
                if at + 1 < len(conditions):
                    what = f"'{name}': what follows a case without a filter has no effect"
                    problems.warn(document.where(place), what)
                return _joined(cases, value)
            cases.append({"tensors": _glob(str(one["filter"])), "value": value})
    if meaning.default is not REQUIRED:
        return _joined(cases, native_default(meaning))
    where = document.where(layers[0][1] if layers else ())
    what = f"'{name}' has no value" + (" for tensors that no filter is in" if cases else "")
    problems.add(where, what, f"give `{name}` under `parameters`")
    return None


def native_default(meaning: Meaning) -> Any:
    """Give mergekit's default of a parameter as our recipes write it."""
    return _changed_scalar(meaning.default, meaning)


def first_anchors(value: Any) -> Any:
    """Give what a value is where there are no layers: the first anchor of every gradient."""
    if isinstance(value, list):
        return [{**one, "value": first_anchors(one["value"])} for one in value]
    return value["outside"] if isinstance(value, dict) else value


def _conditions(value: Any) -> Iterable[Mapping[str, Any]]:
    """Give a setting as conditions; an empty list or nothing means that it is not given."""
    if value is None or value == []:
        return []
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return value
    return [{"value": value}]


def _check_condition(one: Mapping[str, Any], where: str, problems: Problems) -> None:
    """Say what mergekit passes over without a word: other fields, and filters that are no text."""
    if unknown := [str(key) for key in one if key not in {"filter", "value"}]:
        known = "a case has `filter` and `value`"
        problems.warn(where, f"unknown field '{printable(unknown[0], 60)}' has no effect; {known}")
    if not isinstance(one.get("filter"), str | None):
        problems.add(where, "`filter` is a part of a tensor's name", "write one case for each")


def _glob(text: str) -> str:
    """A filter is any part of a name; what globs would read otherwise is taken literally."""
    escaped = "".join(f"[{c}]" if c in "*?[" else c for c in text)
    return f"*{escaped}*"


def _joined(cases: list[dict[str, Any]], value: Any) -> Any:
    return [*cases, {"value": value}] if cases else value


def _changed(value: Any, meaning: Meaning, where: str, problems: Problems) -> Any:
    if not isinstance(value, list):
        return _checked(value, meaning, where, problems)
    anchors = [_checked(one, meaning, where, problems) for one in value]
    if not anchors:
        problems.add(where, "an empty gradient")
        return None
    if all(one == anchors[0] for one in anchors):
        return anchors[0]
    return {"gradient": anchors, "outside": anchors[0]}


def _say_outside(value: Any, condition: Mapping[str, Any], where: str, problems: Problems) -> None:
    """Warn where a gradient's first value holds for the head as well, which comes last."""
    everywhere = condition.get("filter") in _EVERYTHING
    if everywhere and isinstance(value, dict) and value["gradient"][-1] != value["outside"]:
        what = f"the final norm and the head take the gradient's first value, {value['outside']}"
        problems.warn(where, f"{what}, as the embedding does")


def _checked(value: Any, meaning: Meaning, where: str, problems: Problems) -> Any:
    if not isinstance(value, bool | int | float | str):
        problems.add(where, "must be a number, a word, or a list of them")
        return 0.0
    changed = _changed_scalar(value, meaning)
    if meaning.change == "fraction" and changed != value and changed != _number(value):
        problems.warn(where, f"{value} is taken for {changed:g}")
    return changed


def _changed_scalar(value: Any, meaning: Meaning) -> Any:
    number = _number(value)
    if meaning.change == "rescale":
        return "l1" if number in (True, "true") else "none"
    if meaning.change == "fraction" and isinstance(number, float | int):
        return min(max(float(number), 0.0), 1.0)
    if isinstance(meaning.default, int) and not isinstance(meaning.default, bool):
        return number
    if isinstance(number, int) and not isinstance(number, bool):
        return float(number)
    return number


def _number(value: Any) -> Any:
    """Mergekit reads numbers that YAML 1.1 takes for words (`1e-3`)."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
