"""Folders that parameters of evaluators name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, ValidationInfo

__all__ = ["DataFolder"]


def _existing_folder(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    path = Path((info.context or {}).get("base_dir", ".")) / Path(value).expanduser()
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}")
    return path.resolve()  # a task of lm_eval is made in another folder


# A parameter that names a folder, relative to the recipe's folder. Its files' content decides
# whether a kept result is still good.
DataFolder: TypeAlias = Annotated[Path, BeforeValidator(_existing_folder)]
