"""Texts that a model's tokenizer cannot express, so that it is asked of others than are meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

__all__ = ["Expressing", "lossy_items"]


@runtime_checkable
class Expressing(Protocol):
    """A model that knows what its tokenizer makes of texts; one behind a server does not."""

    def lossy(self, texts: Sequence[str]) -> list[bool]:
        """Tell which texts are not what their tokens stand for."""
        ...


def lossy_items(model: object, texts: Mapping[str, str]) -> tuple[str, ...]:
    """Give the ids of texts that the model cannot express; none where that is not known."""
    if not isinstance(model, Expressing):
        return ()
    flags = model.lossy(list(texts.values()))
    return tuple(name for name, flag in zip(texts, flags, strict=True) if flag)
