"""`publish:` of a recipe: where the result goes when it is made, and what stands beside it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PublishFields", "PublishSpec"]


class PublishFields(BaseModel):
    """Where the result is published, and how."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    card: bool = Field(True, description="write a model card, README.md")
    to: list[str] = Field(
        default=[], description="folders, hf:org/name@branch, s3://bucket/prefix, oci://..."
    )
    strict: bool = Field(False, description="refuse what is otherwise only warned about")


@dataclass(frozen=True, slots=True)
class PublishSpec:
    """Targets in their order, folders as paths that hold from anywhere."""

    card: bool
    to: tuple[str, ...]
    strict: bool
