"""A recipe as others may read it: without the folders of whoever ran it, and without secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import PurePath
from typing import Any

from mergepipe.errors import has_secret

__all__ = ["masked"]

_LEAST_SHARED = 3  # parts of the folder that paths share: `/home/ann` and deeper tell no name
_PLACES = ("output", "publish")  # where the result goes, which nothing is read from
_LEAST_PARTS = 3  # of a path: `/no_think` is none


def masked(recipe: Any) -> Any:
    """Give a recipe whose absolute paths are relative to the folder that they share.

    Where they share none but a root's or a home's, only names are left. No two paths become one.

    >>> masked({"models": {"a": "/data/m/a", "b": "/data/m/x/b"}, "output": {"path": "/tmp/y/out"}})
    {'models': {'a': './a', 'b': './x/b'}, 'output': {'path': './out'}}
    """
    if not isinstance(recipe, dict):
        return recipe
    inputs = {name: part for name, part in recipe.items() if name not in _PLACES}
    found = list(dict.fromkeys(filter(_is_path, _texts(inputs))))
    shared = os.path.commonpath([str(PurePath(one).parent) for one in found]) if found else ""
    if len(PurePath(shared).parts) < _LEAST_SHARED:
        shared = ""
    taken = {os.path.normpath(one) for one in _names(inputs)}
    names: dict[str, str] = {}
    for path in found:
        name = os.path.relpath(path, shared) if shared else PurePath(path).name
        names[path] = _untaken(name, taken)
        taken.add(os.path.normpath(names[path]))
    return _replaced(recipe, names)


def _names(inputs: Mapping[str, Any]) -> Iterator[str]:
    """Give the texts that may be files' names: labels and names of evaluations are none."""
    yield from _texts(inputs.get("models"))
    yield from (one for one in _texts(inputs) if "/" in one or "." in one)


def _untaken(name: str, taken: set[str]) -> str:
    """Give `./name`, with a number where something else is called that."""
    numbered = (f"{name}-{number}" for number in count(2))
    return f"./{name if name not in taken else next(one for one in numbered if one not in taken)}"


def _is_path(text: str) -> bool:
    path = PurePath(text)
    is_home = text.startswith("~") and not text.startswith("~/")
    long_enough = len(path.parts) >= _LEAST_PARTS and not any(char in text for char in "\n\r\0")
    return (path.is_absolute() or is_home) and long_enough


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for inner in data.values() if isinstance(data, dict) else data:
            yield from _texts(inner)


def _replaced(data: Any, names: Mapping[str, str]) -> Any:
    if isinstance(data, dict):
        return {name: _replaced(inner, names) for name, inner in data.items()}
    if isinstance(data, list):
        return [_replaced(inner, names) for inner in data]
    if not isinstance(data, str):
        return data
    if has_secret(data):
        return "[secret]"
    if data in names:
        return names[data]
    return f"./{PurePath(data).name}" if _is_path(data) else data
