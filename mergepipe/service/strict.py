"""JSON as a service takes it from strangers."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["NotStrictError", "read_json"]

_MAX_DEPTH = 32
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKETS = re.compile(rb"[\[\]{}]")


class NotStrictError(ValueError):
    """What is wrong with a body, in words that may be shown."""


def read_json(body: bytes) -> Any:
    """Read JSON that is UTF-8, at most 32 levels deep, has no key twice and no NaN or Infinity.

    Raises
    ------
    NotStrictError
        saying which of these it is not.

    """
    depth = 0
    for bracket in _BRACKETS.finditer(_STRING.sub(b'""', body)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > _MAX_DEPTH:
            raise NotStrictError(f"the body is nested more than {_MAX_DEPTH} levels deep")
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_finite,
        )
    except NotStrictError:
        raise
    except (ValueError, RecursionError):
        raise NotStrictError("the body is not JSON") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotStrictError("a key stands twice in one object")
    return found


def _constant(word: str) -> float:
    raise NotStrictError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        raise NotStrictError("a number is too large for a float")
    return number
