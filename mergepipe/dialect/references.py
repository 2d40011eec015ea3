"""mergekit's names of models -> labels and sources of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergepipe.checkpoint import is_weight_file
from mergepipe.errors import Problems
from mergepipe.recipe import Document, FieldPath

__all__ = ["References"]

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.-]+")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # which name no model
_RESERVED = frozenset({"method", "models", "slices", "where", "then", "tensors", "take", "merged"})


@dataclass
class References:
    """Gives every model a label; the same model has the same one."""

    document: Document
    problems: Problems
    taken: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset()
    models: dict[str, Any] = field(default_factory=dict)  # label -> as a recipe writes it
    _labels: dict[object, str] = field(default_factory=dict)

    @property
    def are_files(self) -> bool:
        """Whether the models named so far are weights alone, as mergekit-pytorch takes them."""
        named = [one for one in self.models.values() if isinstance(one, str)]
        return bool(named) and all(is_weight_file(self.document.folder / one) for one in named)

    def label(self, value: Any, path: FieldPath) -> str:
        """Give the label of a model, which is named by text or by a mapping."""
        if isinstance(value, str) and value in self.stages:
            return value
        parts = self._parts(value, path)
        if parts is None:
            return "unknown"
        if parts not in self._labels:
            self._labels[parts] = self._new(parts)
        return self._labels[parts]

    def _new(self, parts: tuple[str, str | None]) -> str:
        model, adapter = parts
        names = [_name(part) for part in parts if part]
        label = "-".join(names)[:90] or "model"
        if label in self.taken | _RESERVED | self.stages:
            label += "-model"
        while label in self.models:
            label += "-2"
        self.models[label] = model if adapter is None else {"path": model, "adapter": adapter}
        return label

    def _parts(self, value: Any, path: FieldPath) -> tuple[str, str | None] | None:
        """Give model and adapter, each as a recipe names it."""
        if isinstance(value, dict):
            return self._of_mapping(value, path)
        if not isinstance(value, str) or not value.strip():
            self.problems.add(self.document.where(path), "a model is named by text")
            return None
        here = self._local(value)
        if here is not None:
            if "+" in value or "@" in value:
                what = f"'{value}' is a folder; mergekit would cut the name at '+' or '@'"
                self.problems.warn(self.document.where(path), what)
            return here, None
        model, _, adapter = value.partition("+")
        if adapter and model in self.stages:
            what = f"'{value}': an adapter cannot be put on what another document makes"
            self.problems.add(self.document.where(path), what, "put it on a model that is merged")
            return None
        return self._located(model), self._located(adapter) if adapter else None

    def _of_mapping(
        self, value: Mapping[str, Any], path: FieldPath
    ) -> tuple[str, str | None] | None:
        if "override_architecture" in value:
            what = "override_architecture has no effect: tensors are matched by their names"
            self.problems.warn(self.document.where(path), what)
        model, adapter = (_joined(value.get(part)) for part in ("model", "lora"))
        if model is None:
            self.problems.add(self.document.where(path), "needs `model: {path: ...}`")
            return None
        return self._located(model), None if adapter is None else self._located(adapter)

    def _located(self, text: str) -> str:
        here, (front, at, _) = self._local(text), text.rpartition("@")
        if here is None and at and self._local(front) is not None:
            what = f"'{text}': a folder has no revisions, so it is read as it is"
            self.problems.warn(self.document.where(()), what)
            return self._located(front)
        return here or text.strip()

    def _local(self, text: str) -> str | None:
        """Find a folder or file beside the configuration, or where the command runs."""
        path = Path(text).expanduser()
        if (self.document.folder / path).exists():
            # `a/b` could be read as a name on the hub.
            return text if path.is_absolute() or text.startswith(".") else f"./{text}"
        return str(path.resolve()) if path.exists() else None


def _joined(value: Any) -> str | None:
    """`{path: a, revision: b}` as `a@b`."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        return None
    revision = value.get("revision")
    return f"{value['path']}@{revision}" if revision else str(value["path"])


def _name(text: str) -> str:
    """`org/name@rev` and `./folder/name` as `name`, `name/model.safetensors` too."""
    front, _, last = text.rstrip("/").rpartition("/")
    if last in _WEIGHT_FILES and front:
        return _name(front)
    last = last.partition("@")[0]
    return _FORBIDDEN.sub("-", last).strip("-.") or "model"
