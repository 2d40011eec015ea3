"""What a transplant does beside its method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["Options", "SpecialRow", "UnownedRow"]

# For a special token that the base lacks: the mean of the base's special tokens, of all its
# tokens, or zeros.
SpecialRow: TypeAlias = Literal["special", "mean", "zero"]
# For ids that no token has: the mean of all others' rows, or zeros.
UnownedRow: TypeAlias = Literal["mean", "zero"]


@dataclass(frozen=True, slots=True)
class Options:
    """How tokens are matched, and what rows the others get.

    `roles` maps special tokens of the donor to tokens of the base; `byte`, `fuzzy` and `prefix`
    are those of `match`. `multiple` is what the number of rows is a multiple of; without it the
    result has as many rows as the donor's embedding, or the fewest that will do. `strict` refuses
    tokenizers that cut numbers in different ways.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    byte: bool = True
    fuzzy: bool = False
    prefix: bool = False
    special_fallback: SpecialRow = "special"
    junk: UnownedRow = "mean"
    multiple: int | None = None
    strict: bool = False
