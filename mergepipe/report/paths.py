"""Paths as a report may show them: none of them absolute, none that tells whose machine it was."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

__all__ = ["portable", "without_paths"]

# An absolute path, not the end of an address or of a relative path.
_ABSOLUTE = re.compile(
    r"(?<![\w.:/~-])(?:~[\w.-]*)?/(?:[^\s/'\"`,;:()<>|]+/)+([^\s/'\"`,;:()<>|]*)"
)


def without_paths(text: str) -> str:
    """Leave of absolute paths in a text only what they end with.

    >>> without_paths("no folder /home/ann/models/base here, see https://example.org/a/b")
    'no folder …/base here, see https://example.org/a/b'
    """
    return _ABSOLUTE.sub(lambda found: f"…/{found[1]}", text)


def portable(data: Any) -> Any:
    """Give a recipe whose absolute paths are relative to the folder that they share.

    >>> portable({"a": "/x/y/base", "b": ["/x/y/data/c.jsonl"], "n": 1})
    {'a': './base', 'b': ['./data/c.jsonl'], 'n': 1}
    """
    found = [one for one in _texts(data) if PurePath(one).is_absolute()]
    if not found:
        return data
    parents = [str(PurePath(one).parent) for one in found]
    shared = Path(os.path.commonpath(parents))
    return _moved(data, shared)


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for inner in data.values() if isinstance(data, dict) else data:
            yield from _texts(inner)


def _moved(data: Any, shared: Path) -> Any:
    if isinstance(data, dict):
        return {name: _moved(inner, shared) for name, inner in data.items()}
    if isinstance(data, list):
        return [_moved(inner, shared) for inner in data]
    if not isinstance(data, str) or not PurePath(data).is_absolute():
        return data
    if shared == Path(shared.anchor):  # nothing is shared: only names are left
        return f"…/{PurePath(data).name}"
    return f"./{Path(data).relative_to(shared)}"
