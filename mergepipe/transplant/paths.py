"""Parameters that name files or folders, relative to the recipe's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, ValidationInfo

__all__ = ["AnyPath", "Folder"]


def _resolved(value: object, info: ValidationInfo) -> object:
    """Give the path that exists; what is no text is left to pydantic."""
    if not isinstance(value, str):
        return value
    path = Path((info.context or {}).get("base_dir", ".")) / Path(value).expanduser()
    if not path.exists():
        raise ValueError(f"there is no {path}")
    return path


def _folder(value: object, info: ValidationInfo) -> object:
    path = _resolved(value, info)
    if isinstance(path, Path) and not path.is_dir():
        raise ValueError(f"{path} is no folder")
    return path


# A parameter that names a folder, or a file or a folder.
Folder: TypeAlias = Annotated[Path, BeforeValidator(_folder)]
AnyPath: TypeAlias = Annotated[Path, BeforeValidator(_resolved)]
