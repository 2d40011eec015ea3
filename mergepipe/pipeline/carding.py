"""The model card of a result, written into its folder unless somebody's own text is there."""

from __future__ import annotations

from pathlib import Path

from mergepipe.card import Card, is_ours, make_card
from mergepipe.errors import InputError, Problem
from mergepipe.manifest import CARD_FILE
from mergepipe.write import disk_faults, replace_file

__all__ = ["card_of", "write_card"]


def write_card(
    folder: Path,
    *,
    strict: bool = False,
    license: str | None = None,  # noqa: A002 (the hub's word)
) -> tuple[str, ...]:
    """Write README.md, the model card of a result, and give warnings about licences.

    With `license`, the id of one, the result has that, and what the inputs have is only told.

    Raises
    ------
    InputError
        if the folder is not what a run wrote, README.md is somebody's own or was edited, `license`
        is no id, or with `strict` the inputs' licences conflict.
    EnvironmentFault
        if the disk fails.

    """
    card, warnings = card_of(folder, strict=strict, license=license)
    file = folder / CARD_FILE
    _check_ours(file)
    replace_file(file, card.text.encode())
    return warnings


def card_of(
    folder: Path,
    *,
    strict: bool = False,
    license: str | None = None,  # noqa: A002
) -> tuple[Card, tuple[str, ...]]:
    """Give the card that `write_card` writes, and its warnings; nothing is written.

    Raises
    ------
    InputError
        as `write_card`, but for what is there already.

    """
    card = make_card(folder, license)
    if license is not None or not card.conflicts:
        return card, ()
    shown = ", ".join(f"{label} -> {licence}" for label, licence in card.licences.items())
    warnings = (*(f"licences: {one}" for one in card.conflicts), f"licences: {shown}")
    if strict:
        fix = "state the result's licence by --license ID, if you may"
        raise InputError(*(Problem("", one) for one in warnings[:-1]), Problem("", shown, fix))
    return card, warnings


def _check_ours(file: Path) -> None:
    """Refuse to replace what is no card of ours, or was edited since it was written."""
    if not file.exists() and not file.is_symlink():
        return
    fix = "remove it, or take what you need from `mergepipe card DIR --print`"
    if file.is_symlink() or not file.is_file():
        raise InputError(Problem(str(file), "is there and no file of ours", fix))
    with disk_faults(file):
        text = file.read_bytes().decode("utf-8", errors="replace")
    if not is_ours(text):
        raise InputError(Problem(str(file), "is there, and was written or edited by hand", fix))
