"""What is wrong with the files of a tokenizer, in words that name the model and the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergepipe.checkpoint.files import FileFaultError, Place, read_json
from mergepipe.errors import InputError, Problem

__all__ = ["fault", "place", "stored_json"]

_FIX = "fetch the tokenizer of this model again"


def place(folder: Path, label: str, file: str = "") -> str:
    """Call a file `expert/tokenizer.json`, or `math (expert/...)` for a model labelled `math`."""
    return Place(label, folder, folder.name or folder.resolve().name).of(file)


def fault(where: str, what: str, fix: str = _FIX) -> InputError:
    """Give the error to raise."""
    return InputError(Problem(where, what, fix))


def stored_json(folder: Path, label: str, file: str) -> Any:
    """Give the value in a JSON file of a model's folder.

    Raises
    ------
    InputError
        if it cannot be read, or is no JSON.

    """
    try:
        return read_json(folder / file)
    except FileFaultError as error:
        raise fault(place(folder, label, file), str(error)) from error
