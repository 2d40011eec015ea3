"""Models and adapters as they are named on the command line: folders, or names on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from mergepipe.checkpoint import ModelSource
from mergepipe.checkpoint.files import Place
from mergepipe.checkpoint.source import adapter_place
from mergepipe.errors import InputError, Problem, Problems

__all__ = ["adapter_named", "model_named"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def model_named(text: str, label: str) -> ModelSource:
    """Give the model of a folder, of `org/name` or of `org/name@revision`.

    Raises
    ------
    InputError
        if it is neither.

    """
    folder, hub, revision = _located(text)
    return ModelSource(label, folder, hub, revision, None)


def adapter_named(text: str, problems: Problems) -> Place | None:
    """Give the place of an adapter, fetched from the hub if need be.

    Raises
    ------
    InputError
        if it is neither a folder nor a name on the hub.

    """
    folder, hub, revision = _located(text)
    label = folder.name if folder else text
    source = ModelSource(label, None, None, None, folder, hub, revision)
    return adapter_place(source, problems, local_only=False)


def _located(text: str) -> tuple[Path | None, str | None, str | None]:
    folder = Path(text)
    if folder.is_dir():
        return folder, None, None
    if not _HUB_NAME.fullmatch(text):
        what = "is no folder here, and no name on the hub (org/name or org/name@revision)"
        raise InputError(Problem(text, what, "check the path"))
    name, _, revision = text.partition("@")
    return None, name, revision or None
