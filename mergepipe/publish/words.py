"""Sizes and names in one line of a message."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["counted", "listed", "size"]

_FEW = 5


def size(count: float) -> str:
    """`1.5 GB` of bytes, in decimal units."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def counted(count: int) -> str:
    """`1 file`, `9 files`."""
    return f"{count:,} file{'' if count == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    """`a, b and 7 more`."""
    found = list(names)
    more = f" and {len(found) - _FEW} more" if len(found) > _FEW else ""
    return ", ".join(found[:_FEW]) + more
