"""A file that is to be published, what it was when it was looked at, and its digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mergepipe.errors import InputError, Problem

__all__ = ["Item", "Parcel", "check_unchanged", "digest_of_item", "git_digest", "item_of"]

_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """A file by its name below the folder, with slashes; `stamp` differs once it is written to."""

    name: str
    path: Path
    size: int  # bytes
    stamp: tuple[int, ...]

    @property
    def is_weights(self) -> bool:
        """Whether it holds tensors."""
        return self.name.endswith(".safetensors")


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is published of a folder: weights first, what makes loaders take it for whole last."""

    folder: Path
    items: tuple[Item, ...]
    left_out: tuple[str, ...]  # files of the folder that are not published

    @property
    def names(self) -> frozenset[str]:
        """The names of all files."""
        return frozenset(item.name for item in self.items)


def item_of(folder: Path, name: str) -> Item:
    """Give the file of this name as it is now."""
    path = folder / name
    return Item(name, path, path.stat().st_size, _stamp(path))


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    # The time of the last change of the inode: nobody can set it back.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def check_unchanged(items: Iterable[Item]) -> None:
    """Refuse files that were written to since they were looked at.

    Raises
    ------
    InputError
        naming them.

    """
    changed = [item for item in items if not _is_as_it_was(item)]
    if changed:
        what = "changed while it was being published; what was sent is not what was verified"
        fix = "wait for what writes it, and publish again"
        raise InputError(*(Problem(str(item.path), what, fix) for item in changed))


def _is_as_it_was(item: Item) -> bool:
    try:
        return _stamp(item.path) == item.stamp
    except OSError:
        return False


@cache
def digest_of_item(item: Item, algorithm: str) -> str:
    """Give a digest of the file's bytes in hexadecimal, by a name that `hashlib` knows."""
    return _digest(item, hashlib.new(algorithm, usedforsecurity=False))


@cache
def git_digest(item: Item) -> str:
    """Give the sha1 under which git stores the file."""
    start = hashlib.sha1(b"blob %d\0" % item.size, usedforsecurity=False)
    return _digest(item, start)


def _digest(item: Item, hasher: hashlib._Hash) -> str:
    with item.path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            hasher.update(piece)
    return hasher.hexdigest()
