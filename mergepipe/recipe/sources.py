"""The models of a recipe: labels -> folders and hub names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from mergepipe.checkpoint import ModelSource
from mergepipe.errors import Problems
from mergepipe.recipe.document import Document, FieldPath
from mergepipe.recipe.fields import ModelFields, as_path

__all__ = ["folder_path", "parse_models", "read_sources"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def parse_models(document: Document) -> dict[str, ModelSource]:
    """Give the models of a recipe that may be wrong elsewhere, so that they can be checked too."""
    data = document.data
    named = data.get("models") if isinstance(data, dict) else None
    read = {k: _entry(value) for k, value in named.items()} if isinstance(named, dict) else {}
    models = {label: fields for label, fields in read.items() if fields is not None}
    return read_sources(models, document, Problems())


def _entry(value: object) -> ModelFields | None:
    entry: TypeAdapter[ModelFields] = TypeAdapter(Annotated[ModelFields, BeforeValidator(as_path)])
    try:
        return entry.validate_python(value)
    except ValidationError:
        return None


def read_sources(
    models: Mapping[str, ModelFields], document: Document, problems: Problems
) -> dict[str, ModelSource]:
    """Resolve where each model is; a model by two names is a problem."""
    found: dict[str, ModelSource] = {}
    places: dict[object, str] = {}
    for label, fields in models.items():
        source = _source(label, fields, document, problems)
        if source is None:
            continue
        same = places.setdefault(_identity(source), label)
        if same != label:
            problems.add(
                document.where(("models", label)),
                f"the same model twice: '{label}' and '{same}' are both {fields.path}",
                "list it once and give it the sum of the weights",
            )
        found[label] = source
    return found


def _identity(source: ModelSource) -> object:
    folder = source.path.resolve() if source.path else (source.hub, source.revision)
    adapter = source.adapter.resolve() if source.adapter else source.adapter_hub
    return folder, adapter, source.adapter_revision


def _source(
    label: str, fields: ModelFields, document: Document, problems: Problems
) -> ModelSource | None:
    place: FieldPath = ("models", label)
    path, hub, revision = _locate(fields.path, document, place, problems)
    if path is None and hub is None:
        return None
    adapter, adapter_hub, adapter_revision = (
        _locate(fields.adapter, document, (*place, "adapter"), problems)
        if fields.adapter
        else (None, None, None)
    )
    return ModelSource(label, path, hub, revision, adapter, adapter_hub, adapter_revision)


def _locate(
    text: str, document: Document, where: FieldPath, problems: Problems
) -> tuple[Path | None, str | None, str | None]:
    """Tell a folder from a hub name: a folder that exists wins; `./x`, `/x`, `~/x` are folders."""
    folder = folder_path(text, document, where, problems)
    if folder is None:
        return None, None, None
    name, _, revision = text.partition("@")
    if os.path.exists(folder) or not _HUB_NAME.fullmatch(name):  # noqa: PTH110 (never raises)
        return folder, None, None
    return None, name, revision or None


def folder_path(text: str, document: Document, where: FieldPath, problems: Problems) -> Path | None:
    """Read a path relative to the recipe's folder; None for what cannot be one."""
    try:
        path = document.folder / Path(text).expanduser()
        encoded = os.fsencode(path)
    except (RuntimeError, UnicodeEncodeError) as error:  # ~nobody, a lone surrogate
        problems.add(document.where(where), f"'{text}' cannot be a path: {error}")
        return None
    if "://" in text or b"\0" in encoded:
        problems.add(
            document.where(where),
            f"'{text}' is not allowed",
            "give a folder, or org/name on the Hugging Face hub",
        )
        return None
    return path
