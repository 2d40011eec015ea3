"""Where a model is, for programs that load or ask it themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

__all__ = ["Located"]


@runtime_checkable
class Located(Protocol):
    """A model that is somewhere: a folder, or a server. One that is only in memory is not."""

    @property
    def location(self) -> Mapping[str, str]:
        """`{"path": folder}`, or `{"base_url": ..., "model": ...}`; never a credential."""
        ...
