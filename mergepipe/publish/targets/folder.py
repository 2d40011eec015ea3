"""A folder of this machine: filled beside its place and put there by one rename, never half."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from mergepipe.digest import digest_file
from mergepipe.errors import InputError, Problem
from mergepipe.publish.choosing import is_of_a_model
from mergepipe.publish.item import Item, Parcel, check_unchanged
from mergepipe.publish.target import Options, State, Target
from mergepipe.publish.words import listed
from mergepipe.write import JOURNAL_FILE, new_folder, partial_folder
from mergepipe.write.faults import disk_faults

__all__ = ["TARGET"]


class Folder:
    """A folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def shown(self) -> str:
        """Its path."""
        return str(self.folder)

    def look(self, parcel: Parcel) -> State:
        """Give what it holds.

        Raises
        ------
        InputError
            if it holds files that are no model's, or is the checkpoint itself.
        EnvironmentFault
            if it cannot be read.

        """
        ours, theirs = parcel.folder.resolve(), self.folder.resolve()
        if ours == theirs or ours in theirs.parents or theirs in ours.parents:
            what = "is the checkpoint's own folder, or in it, or around it"
            raise InputError(Problem(self.shown, what, "choose another folder"))
        with disk_faults(self.folder):
            if self.folder.is_file():
                raise InputError(Problem(self.shown, "is a file", "choose another name"))
            if _has_a_merge(partial_folder(self.folder)):
                what = "a merge into it was cut off"
                raise InputError(Problem(self.shown, what, "let `mergepipe run` finish it"))
            names = _names(self.folder) if self.folder.is_dir() else []
            strange = [name for name in names if not is_of_a_model(name)]
            if strange:
                what = f"holds files that are no model's: {listed(strange)}"
                raise InputError(Problem(self.shown, what, "choose another folder"))
            same = {item.name for item in parcel.items if _is_same(item, self.folder / item.name)}
        return State(
            is_new=not names,
            same=frozenset(same),
            replaced=tuple(name for name in names if name in parcel.names - same),
            removed=tuple(name for name in names if name not in parcel.names),
        )

    def send(self, parcel: Parcel, state: State, tell: Callable[[str], None]) -> str:
        """Copy the files into a new folder, and put it in the place of the old one."""
        with disk_faults(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(self.folder, overwrite=True) as partial, disk_faults(partial):
            (partial / JOURNAL_FILE).touch()  # so that what was copied stays if this is cut off
            for name in _names(partial):
                if name not in {*parcel.names, JOURNAL_FILE}:
                    (partial / name).unlink()
            for number, item in enumerate(parcel.items, 1):
                is_there = item.name in state.same
                if is_there or not _is_same(item, partial / item.name):
                    _put(item, self.folder, partial, is_there=is_there)
                if not is_there:
                    tell(f"{item.name}: copied, {number} of {len(parcel.items)}")
            check_unchanged(parcel.items)
        return self.shown


def _names(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _is_same(item: Item, path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != item.size:
        return False
    return digest_file(path) == digest_file(item.path)


def _put(item: Item, old: Path, partial: Path, *, is_there: bool) -> None:
    """Put a file into the new folder; one that the old folder has is linked, not copied."""
    target = partial / item.name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # it may be a link to the old folder's file
    if is_there:
        target.hardlink_to(old / item.name)
    else:
        shutil.copyfile(item.path, target)


def _has_a_merge(partial: Path) -> bool:
    """Tell whether a merge that was cut off can go on there; this module's journals are empty."""
    journal = partial / JOURNAL_FILE
    return journal.is_file() and journal.stat().st_size > 0


def _open(address: str, _options: Options) -> Folder:
    if not address or "\0" in address:
        raise InputError(Problem(address, "cannot be a folder"))
    return Folder(Path(address).expanduser())


TARGET = Target("./folder", _open)
