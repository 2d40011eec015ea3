"""Which tensors a merge makes, and what each is called in every model.

Without slices these are the donor's tensors. With slices the layers of the result are put
together from runs of the models' layers; what stands before the layers comes from the models of
the first slice, what stands behind them from those of the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mergepipe.checkpoint import Checkpoint, Stored, depth_of, layer_of, stacks
from mergepipe.errors import Problems
from mergepipe.plan.align import Alignment, place_of
from mergepipe.plan.values import Values, is_behind
from mergepipe.recipe import MergeSpec, Place, Slice

__all__ = ["Wanted", "layer_sources", "wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor of the result: its place there, and its name in each model that has it."""

    place: Place
    names: Mapping[str, str]
    stored: Stored  # whose dtype and shape it has
    part: Slice | None = None

    @property
    def name(self) -> str:
        """Its name in the result."""
        return self.place.name


def wanted(
    spec: MergeSpec, models: Mapping[str, Alignment], values: Values, problems: Problems
) -> Iterator[Wanted]:
    """Give every tensor of the result, in the donor's order, layers counted up."""
    donor = models[spec.donor]
    names = [name for name in donor.checkpoint.tensors if name not in donor.copies]
    if not spec.slices:
        for name in names:
            yield _alike(name, models, donor.checkpoint, values.place(name), None)
        return
    main = {label: _stack(model.checkpoint, problems) for label, model in models.items()}
    if None in main.values() or not _long_enough(spec, main, models, problems):
        return
    layered = {label: stack for label, stack in main.items() if stack is not None}
    inside = [name for name in names if (layer_of(name) or ("",))[0] == layered[spec.donor]]
    for name in names:
        if name == next(iter(inside), None):
            yield from _layers(spec, models, layered)
        if name not in inside:
            part = spec.slices[-1 if is_behind(name) and layer_of(name) is None else 0]
            yield _alike(name, models, donor.checkpoint, values.place(name), part)


def _alike(
    name: str,
    models: Mapping[str, Alignment],
    donor: Checkpoint,
    place: Place,
    part: Slice | None,
) -> Wanted:
    """Give a tensor that is made of those of the same name."""
    found = {label: model.names.get(name) for label, model in models.items()}
    named = {label: other for label, other in found.items() if other is not None}
    stored, inside = donor.tensors[name], [x for x in named if part is None or x in part.layers]
    if inside and donor.label not in inside:
        stored = models[inside[0]].checkpoint.tensors[named[inside[0]]]
    return Wanted(place, named, stored, part)


def _layers(
    spec: MergeSpec, models: Mapping[str, Alignment], main: Mapping[str, str]
) -> Iterator[Wanted]:
    """Give the tensors of all layers; a gradient runs over its slice."""
    at = 0
    for part in spec.slices:
        for step in range(part.size):
            depth = step / (part.size - 1) if part.size > 1 else 1.0
            for suffix, names in _layer(part, step, models, main):
                structure = next(iter(names))
                stored = models[structure].checkpoint.tensors[names[structure]]
                place = Place(f"{main[spec.donor]}.{at}.{suffix}", depth, in_layers=True)
                yield Wanted(place, names, stored, part)
            at += 1


def _layer(
    part: Slice,
    step: int,
    models: Mapping[str, Alignment],
    main: Mapping[str, str],
) -> Iterator[tuple[str, dict[str, str]]]:
    """Give the tensors of one layer by what follows its number, and their names in the models.

    The base says which there are, or the slice's first model.
    """
    fronts = {label: f"{main[label]}.{first + step}." for label, (first, _) in part.layers.items()}
    labels = sorted(fronts, key=lambda label: label != part.base)
    structure = models[labels[0]]
    for name in structure.checkpoint.tensors:
        if name.startswith(fronts[labels[0]]) and name not in structure.copies:
            suffix = name.removeprefix(fronts[labels[0]])
            named = {label: fronts[label] + suffix for label in labels}
            yield (
                suffix,
                {x: n for x, n in named.items() if n in models[x].checkpoint.tensors},
            )


def _stack(checkpoint: Checkpoint, problems: Problems) -> str | None:
    """Find the layers that slices are cut from: as many as the configuration says."""
    found = stacks(checkpoint.tensors)
    depth = depth_of(checkpoint.config)
    fitting = [name for name, numbers in found.items() if depth in (None, max(numbers) + 1)]
    if len(fitting) == 1:
        return fitting[0]
    problems.add(
        place_of(checkpoint),
        f"slices need a model with one stack of layers; this one has {', '.join(found) or 'none'}",
        "merge it whole, with `models:`",
    )
    return None


def _long_enough(
    spec: MergeSpec,
    main: Mapping[str, str | None],
    models: Mapping[str, Alignment],
    problems: Problems,
) -> bool:
    before = len(problems.found)
    for part in spec.slices:
        for label, (_, end) in part.layers.items():
            checkpoint = models[label].checkpoint
            count = max(stacks(checkpoint.tensors)[main[label] or ""]) + 1
            if end > count:
                problems.add(
                    part.place,
                    f"layers up to {end} of {place_of(checkpoint)}, which has {count}",
                    "count from 0; the end is not included",
                )
    return len(problems.found) == before


def layer_sources(spec: MergeSpec) -> tuple[int, ...] | None:
    """Give the layer of its first model that each layer of the result is like; None if all are."""
    if not spec.slices:
        return None
    return tuple(
        layer
        for part in spec.slices
        for layer in range(*part.layers[part.models[0] if part.models else spec.donor])
    )
