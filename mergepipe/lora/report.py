"""What of a change an adapter holds, tensor by tensor and by kind of module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["How", "Part", "Result", "Row", "rows_of", "share_held"]

How: TypeAlias = Literal["low rank", "whole", "left out"]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor: how the adapter holds it, and how much of its change.

    `change` is the squared Frobenius norm of the change, `held` what is left of it when the
    square of what is missing is taken off.
    """

    name: str
    how: How
    rank: int
    change: float
    held: float

    @property
    def kind(self) -> str:
        """The last part of the module's name: `q_proj`."""
        return self.name.rpartition(".")[0].rpartition(".")[2] or self.name


@dataclass(frozen=True, slots=True)
class Row:
    """All tensors of one kind that the adapter holds in the same way; shares are from 0 to 1."""

    kind: str
    how: How
    count: int
    ranks: tuple[int, int]  # the smallest and the largest
    energy: float  # the share of their change that is held
    change: float  # their share of all change


@dataclass(frozen=True, slots=True)
class Result:
    """An adapter that was written, and what is to be known of it."""

    folder: Path
    parts: tuple[Part, ...]
    warnings: tuple[str, ...]


def rows_of(parts: Sequence[Part]) -> tuple[Row, ...]:
    """Give the parts by kind of module, in their order."""
    groups: dict[tuple[str, How], list[Part]] = {}
    for part in parts:
        groups.setdefault((part.kind, part.how), []).append(part)
    total = _change(parts)
    return tuple(
        Row(
            kind=kind,
            how=how,
            count=len(group),
            ranks=(min(part.rank for part in group), max(part.rank for part in group)),
            energy=share_held(group),
            change=_change(group) / total if total else 0.0,
        )
        for (kind, how), group in groups.items()
    )


def share_held(parts: Iterable[Part]) -> float:
    """Give the share of the parts' change that is held; 1 where nothing changed."""
    several = list(parts)
    total = _change(several)
    return sum(part.held for part in several) / total if total else 1.0


def _change(parts: Iterable[Part]) -> float:
    return sum(part.change for part in parts)
