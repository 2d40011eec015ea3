"""The slices of a merge: runs of layers, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from mergepipe.errors import Problems
from mergepipe.method import Method
from mergepipe.recipe.document import Document, FieldPath
from mergepipe.recipe.fields import MergeFields, SliceFields
from mergepipe.recipe.settings import Settings
from mergepipe.recipe.spec import Slice

__all__ = ["read_slice", "wrong_number"]


class Reader(Protocol):
    """What reads the merge that a slice is part of."""

    document: Document
    problems: Problems
    stage_names: tuple[str, ...]

    def check_label(self, label: str | None, path: FieldPath, extra: Iterable[str] = ()) -> None:
        """Add a problem if there is no such model."""

    def shared(
        self, values: Mapping[str, Any], method: Method[Any, Any], path: FieldPath
    ) -> Settings:
        """Check the method's parameters for the merge."""

    def each(self, values: object, method: Method[Any, Any], path: FieldPath) -> Settings:
        """Check the method's parameters for one model."""


def read_slice(
    reader: Reader,
    fields: SliceFields,
    merge: MergeFields,
    method: Method[Any, Any] | None,
    path: FieldPath,
) -> Slice:
    """Check one entry of `slices:`; what is wrong becomes problems."""
    stages, base = reader.stage_names, fields.base or merge.base
    reader.check_label(fields.base, (*path, "base"), stages)
    layers: dict[str, tuple[int, int]] = {}
    each: dict[str, Settings] = {}
    for label, one in fields.models.items():
        place: FieldPath = (*path, "models", label)
        reader.check_label(label, place, stages)
        layers[label] = (one.layers[0], one.layers[1])
        _check_layers(reader, layers[label], next(iter(layers.values())), place)
        if method is not None:
            each[label] = reader.each(one.model_extra or {}, method, place)
    reads_base = method is not None and method.uses_base(named=base is not None)
    if reads_base and base is not None:
        layers.setdefault(base, next(iter(layers.values())))
    models = tuple(label for label in fields.models if not (reads_base and label == base))
    if method is not None:
        if method.needs_base and base is None:
            reader.problems.add(reader.document.where(path), f"{method.name} needs a base model")
        wrong = wrong_number(method, models)
        if wrong:
            reader.problems.add(reader.document.where((*path, "models")), wrong)
    shared = {} if method is None else reader.shared(fields.model_extra or {}, method, path)
    return Slice(reader.document.where(path), base, models, layers, each, shared)


def _check_layers(
    reader: Reader, one: tuple[int, int], first: tuple[int, int], path: FieldPath
) -> None:
    """Refuse runs of layers that are empty, negative, or of another length than the first."""
    where = reader.document.where((*path, "layers"))
    if not 0 <= one[0] < one[1]:
        reader.problems.add(
            where, f"layers {list(one)}: give the first, and the one behind the last"
        )
    elif one[1] - one[0] != first[1] - first[0]:
        reader.problems.add(
            where,
            f"{one[1] - one[0]} layers, but the slice's first model gives {first[1] - first[0]}",
            "merge runs of one length",
        )


def wrong_number(method: Method[Any, Any], labels: tuple[str, ...]) -> str | None:
    """Say that a method takes another number of models than these."""
    (fewest, most), count = method.models, len(labels)
    if count >= fewest and (most is None or count <= most):
        return None
    total = most + method.needs_base if most is not None else None
    takes = f"at least {fewest}" if total is None else f"exactly {total}"
    base = " (the base and one other)" if method.needs_base and most == 1 else ""
    return (
        f"{method.name} takes {takes} models{base}; got {count + method.needs_base} "
        f"({', '.join(labels)}{' and the base' * method.needs_base})"
    )
