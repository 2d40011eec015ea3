"""Which vocabulary a result shall have, and where rows come from that a model lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["RowSource", "TokenizerChoice"]


@dataclass(frozen=True, slots=True)
class RowSource:
    """The row of one token in models that lack it; with `force` in all models.

    The row is that of the same token in the model `take`, of `token` there, or the one of `id`;
    zeros where `take` is None.
    """

    place: str  # where it stands: `recipe.yaml:9:7`
    take: str | None = None
    token: str | None = None
    id: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerChoice:
    """`source` is the label of the model whose tokenizer it is; None for the union of all.

    Rows are added until there are a `multiple`. `allow_ordinary_union` lets ordinary tokens of
    other tokenizers become added tokens, which cut words.
    """

    place: str
    source: str | None
    tokens: Mapping[str, RowSource] = field(default_factory=dict)
    multiple: int = 1
    allow_ordinary_union: bool = False
