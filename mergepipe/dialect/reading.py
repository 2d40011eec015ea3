"""One configuration as it is read: its fields, their places, and the models that it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mergepipe.dialect.references import References
from mergepipe.dialect.values import Layer
from mergepipe.errors import Problems, did_you_mean
from mergepipe.recipe import Document, FieldPath

__all__ = ["Origins", "Reading"]

Origins = dict[FieldPath, FieldPath]  # a place in the recipe -> the one that it comes from


@dataclass(frozen=True, slots=True)
class Reading:
    """The fields of one configuration, and where faults of them go."""

    data: dict[str, Any]
    front: FieldPath  # of its document among several
    document: Document
    problems: Problems
    references: References

    def add(self, path: FieldPath, what: str, fix: str = "") -> None:
        """Say what is wrong with a field."""
        self.problems.add(self.document.where((*self.front, *path)), what, fix)

    def warn(self, path: FieldPath, what: str) -> None:
        """Say what surprises in a field."""
        self.problems.warn(self.document.where((*self.front, *path)), what)

    def label(self, value: Any, path: FieldPath) -> str:
        """Give the label of a model that a field names."""
        return self.references.label(value, (*self.front, *path))

    def check_keys(self, fields: Any, known: Sequence[str], path: FieldPath) -> None:
        """Warn of fields that mergekit does not know."""
        for key in fields if isinstance(fields, dict) else ():
            if key not in known:
                what = f"unknown field, which mergekit passes over{did_you_mean(str(key), known)}"
                self.warn((*path, key), what)

    def layer(self, fields: Any, path: FieldPath) -> Layer:
        """Give the `parameters` of a mapping, and where they stand."""
        parameters = fields.get("parameters") if isinstance(fields, dict) else None
        place = (*self.front, *path, "parameters")
        return (parameters if isinstance(parameters, dict) else {}, place)

    def entries(
        self, entries: Any, path: FieldPath, known: Sequence[str]
    ) -> Iterator[tuple[int, dict[str, Any], FieldPath]]:
        """Give the mappings of a list, with their numbers and places."""
        if not isinstance(entries, list):
            self.add(path, "must be a list")
            return
        for i, entry in enumerate(entries):
            at = (*path, i)
            if not isinstance(entry, dict):
                self.add(at, "must be a mapping")
                continue
            self.check_keys(entry, known, at)
            yield i, entry, at
