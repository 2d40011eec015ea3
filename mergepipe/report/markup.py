"""Elements of HTML and SVG. Text is data: it is escaped where it is written, and only there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

from mergepipe.errors import printable

__all__ = ["Child", "Node", "render", "safe", "tag"]

_EMPTY = {"br", "hr", "meta", "col"}  # elements of HTML without an end
_MOST = 100_000  # characters of one line
_LEAST = 0.005  # smaller than what a coordinate's two places show


@dataclass(frozen=True, slots=True)
class Node:
    """An element: its name, attributes and children."""

    name: str
    attributes: tuple[tuple[str, str], ...]
    children: tuple[Child, ...]


Child: TypeAlias = "Node | str | int | float | Iterable[Child] | None"


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Node:
    """Give an element; `class_` and `stroke_width` become `class` and `stroke-width`.

    Attributes that are None are left out, numbers are rounded to two places.
    """
    found = (
        (key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else _number(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Node(name, tuple(found), children)


def render(child: Child) -> str:
    """Write an element, or text, as HTML."""
    return "".join(_parts(child))


def safe(text: object) -> str:
    """Escape text for HTML; controls, overrides of direction and credentials are made visible."""
    return escape("\n".join(printable(line, _MOST) for line in str(text).split("\n")))


def _parts(child: Child) -> Iterator[str]:
    if child is None:
        return
    if isinstance(child, str | int | float):
        yield safe(child)
    elif isinstance(child, Node):
        attributes = "".join(f' {key}="{safe(value)}"' for key, value in child.attributes)
        yield f"<{child.name}{attributes}>"
        if child.name not in _EMPTY:
            for inner in child.children:
                yield from _parts(inner)
            yield f"</{child.name}>"
    else:
        for inner in child:
            yield from _parts(inner)


def _number(value: float | None) -> str:
    assert value is not None, "left out before"
    if abs(value - round(value)) < _LEAST:
        return str(round(value))
    return f"{value:.2f}".rstrip("0")
