"""The merges of a recipe in words, and their coefficients tensor by tensor, without the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergepipe.checkpoint import layer_of
from mergepipe.checkpoint.names import stacks
from mergepipe.inspect.matching import kind_of
from mergepipe.method import Method, Parameters, load_method
from mergepipe.plan.align import role_of
from mergepipe.plan.values import is_behind
from mergepipe.recipe import MergeSpec, Place, Recipe, Rule, Setting, Settings, matches, value_at
from mergepipe.recipe.settings import Gradient
from mergepipe.report.contents import Coefficients, Stage

__all__ = ["stages_of"]

_MATRIX = (2, 2)  # any shape of two dimensions: roles are those of matrices
_NUMBERS = (float, int)
_MOST_ANCHORS = 5


def stages_of(recipe: Recipe, names: Sequence[str]) -> list[Stage]:
    """Give the merges in order; `names` are the tensors of the result.

    Raises
    ------
    InputError
        if a method is not installed here.

    """
    return [_stage(name, spec, names) for name, spec in recipe.merges.items()]


def _stage(name: str, spec: MergeSpec, names: Sequence[str]) -> Stage:
    method = load_method(spec.method)
    doc = method.doc.partition(">>>")[0].strip()
    return Stage(
        name=name,
        method=spec.method,
        sentence=" ".join(doc.partition("\n\n")[0].split()),
        doc=doc.partition("\n\n")[2].strip(),
        base=spec.base,
        each={
            label: _shown(method.each, settings)
            for label, settings in spec.each.items()
            if label in spec.models
        },
        shared=_shown(method.shared, spec.shared),
        rules=[_rule(one) for one in spec.rules],
        then=[_then(one.name, one.settings) for one in spec.then],
        coefficients=[] if spec.slices else list(_coefficients(spec, method, names)),
    )


def _defaults(parameters: type[Parameters]) -> dict[str, Any]:
    fields = parameters.model_fields.items()
    return {
        field.alias or name: field.get_default(call_default_factory=True) for name, field in fields
    }


def _shown(parameters: type[Parameters], settings: Settings) -> dict[str, str]:
    """Give every parameter with its value; those that were not given have their default."""
    values = {**_defaults(parameters), **settings}
    return {name: _value(value) for name, value in values.items()}


def _value(setting: Setting | None) -> str:
    if setting is None:
        return "–"
    if isinstance(setting, Gradient):
        anchors = [_value(one) for one in setting.anchors]
        if len(anchors) > _MOST_ANCHORS:
            anchors = [*anchors[:2], "…", anchors[-1]]
        return f"{', '.join(anchors)} over depth"
    if isinstance(setting, tuple):
        return "by module"
    if isinstance(setting, bool):
        return "yes" if setting else "no"
    return f"{setting:.4g}" if isinstance(setting, float) else str(setting)


def _rule(rule: Rule) -> str:
    parts = [f"take {rule.take}"] if rule.take is not None else []
    parts += [f"method {rule.method}"] if rule.method is not None else []
    parts += [f"{name} {_value(value)}" for name, value in rule.shared.items()]
    parts += [
        f"{label}.{name} {_value(value)}"
        for label, settings in rule.each.items()
        for name, value in settings.items()
    ]
    return f"{' '.join(rule.globs)}: {', '.join(parts)}"


def _then(name: str, settings: Settings) -> str:
    inside = ", ".join(f"{key} {_value(value)}" for key, value in settings.items())
    return f"{name} ({inside})" if inside else name


def _coefficients(
    spec: MergeSpec, method: Method[Any, Any], names: Sequence[str]
) -> Iterator[Coefficients]:
    """Give the numbers that are not the same for all tensors."""
    depths = {stack: max(layers) for stack, layers in stacks(names).items()}
    places = [(name, _place(name, depths)) for name in names]
    for parameter in _numbers(method.each):
        each = {label: (spec.each[label], label) for label in spec.models}
        yield from _varying(spec, method.each, parameter, each, places)
    for parameter in _numbers(method.shared):
        yield from _varying(spec, method.shared, parameter, {"all": (spec.shared, None)}, places)


def _numbers(parameters: type[Parameters]) -> list[str]:
    fields = parameters.model_fields.items()
    return [field.alias or name for name, field in fields if field.annotation in _NUMBERS]


def _place(name: str, depths: Mapping[str, int]) -> Place:
    """Give where a tensor is, as a plan says it."""
    layer = layer_of(name)
    if layer is None:
        return Place(name, float(is_behind(name)), in_layers=False)
    last = depths[layer[0]]
    return Place(name, layer[1] / last if last else 0.0, in_layers=True)


def _varying(
    spec: MergeSpec,
    parameters: type[Parameters],
    parameter: str,
    each: Mapping[str, tuple[Settings, str | None]],
    places: Sequence[tuple[str, Place]],
) -> Iterator[Coefficients]:
    default = _defaults(parameters).get(parameter)
    curves: dict[str, dict[str, list[tuple[int | None, float]]]] = {}
    distinct: dict[str, set[float]] = {series: set() for series in each}
    for name, place in places:
        rule = next((one for one in spec.rules if matches(one.globs, name)), None)
        if rule is not None and (rule.take is not None or rule.method not in (None, spec.method)):
            continue
        layer, kind = layer_of(name), kind_of(name, role_of(name, _MATRIX))
        for series, (settings, label) in each.items():
            special = (
                {} if rule is None else rule.shared if label is None else rule.each.get(label, {})
            )
            value = _at((special, settings), parameter, place, default)
            if value is None:
                continue
            distinct[series].add(value)
            points = curves.setdefault(kind, {}).setdefault(series, [])
            at = None if layer is None else layer[1]
            if at not in {before for before, _ in points[-2:]}:
                points.append((at, value))
    if any(len(values) > 1 for values in distinct.values()):
        yield Coefficients(parameter, curves)


def _at(layers: Sequence[Settings], name: str, place: Place, default: Any) -> float | None:
    """Give a number for one tensor: of the first settings that have one for it."""
    for settings in layers:
        found = value_at(settings[name], place) if name in settings else None
        if found is not None:
            return float(found) if isinstance(found, _NUMBERS) else None
    return float(default) if isinstance(default, _NUMBERS) else None
