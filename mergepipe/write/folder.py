"""An output folder that is either absent, the old one, or the new one: never between.

Work goes into `.NAME.partial` beside the target, under a lock; when it is whole the target is
renamed away, the new folder renamed into its place, and the old one removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergepipe.errors import EnvironmentFault, InputError, Problem, printable

__all__ = ["check_target", "new_folder"]


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that cannot or may not be written, before any work.

    Raises
    ------
    InputError
        if it exists and `overwrite` is not given, or its parent is missing.
    EnvironmentFault
        if its parent cannot be written.

    """
    parent = target.parent
    if not parent.is_dir():
        raise InputError(Problem(str(target), f"no folder {parent}", "create it first"))
    if not os.access(parent, os.W_OK):
        raise EnvironmentFault(Problem(str(parent), "no permission to write here"))
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(Problem(str(target), "exists and is not a folder", "choose another"))
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise InputError(
            Problem(str(target), "exists", "choose another folder, or replace it by --overwrite")
        )


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to fill; when the block ends without error it becomes `target`.

    Raises
    ------
    InputError, EnvironmentFault
        as `check_target`, or if another run is writing the same target.

    """
    check_target(target, overwrite=overwrite)
    partial = target.with_name(f".{target.name}.partial")
    old = target.with_name(f".{target.name}.old")
    with _lock(target.with_name(f".{target.name}.lock"), target):
        _recover(target, old)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            _sync(partial)
            _swap(partial, target, old)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _recover(target: Path, old: Path) -> None:
    """Undo a swap that was cut off between its two renames."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _swap(partial: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    partial.rename(target)
    _sync_one(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _lock(path: Path, target: Path) -> Iterator[None]:
    file = _acquire(path, target)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _acquire(path: Path, target: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = printable(os.pread(file, 200, 0).decode(errors="replace"))
            os.close(file)
            raise EnvironmentFault(
                Problem(str(target), f"another run is writing here: {holder}", "wait for it")
            ) from error
        if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
            return file
        os.close(file)  # its owner removed it between our open and our lock
