"""An output folder that is either absent, the old one, or the new one: never between.

Work goes into `.NAME.partial` beside the target, under a lock; when it is whole it takes the
target's place and the old one is removed. Work that was cut off stays, if it holds a journal.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergepipe.errors import EnvironmentFault, InputError, Problem, printable
from mergepipe.write.faults import disk_faults
from mergepipe.write.journal import JOURNAL_FILE

__all__ = ["STAGES", "check_target", "new_folder", "partial_folder"]

STAGES = "stages"  # in the partial folder: results of stages before the last
_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE


def partial_folder(target: Path) -> Path:
    """Where a target is made."""
    return _beside(target, "partial")


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
def new_folder(target: Path, *, overwrite: bool = False, sync: bool = True) -> Iterator[Path]:
    """Give a folder to fill; when the block ends without error it becomes `target`.

    The folder may hold what an earlier run left. When the block fails it stays for a later run if
    it holds a journal, unless an input was wrong. `sync` waits until the disk has everything.

    Raises
    ------
    InputError, EnvironmentFault
        as `check_target`, if another run is writing the same target, or the disk fails.

    """
    check_target(target, overwrite=overwrite)
    with _lock(_beside(target, "lock"), target):
        partial = partial_folder(target)
        with disk_faults(partial):
            _recover(target)
            check_target(target, overwrite=overwrite)
            partial.mkdir(exist_ok=True)
        try:
            yield partial
            with disk_faults(partial):
                _finish(partial, sync=sync)
                _swap(target)
        except BaseException as error:
            _recover(target)
            if isinstance(error, InputError) or not (partial / JOURNAL_FILE).exists():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if sync:
            with disk_faults(target.parent):
                _sync(target.parent)


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _recover(target: Path) -> None:
    """Undo a swap that was cut off."""
    partial, old, journal = (_beside(target, what) for what in ("partial", "old", "journal"))
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    if journal.exists() and partial.exists():
        journal.replace(partial / JOURNAL_FILE)
    journal.unlink(missing_ok=True)


def _finish(partial: Path, *, sync: bool) -> None:
    """Leave only what belongs to the result, and the journal, on the disk if need be."""
    shutil.rmtree(partial / STAGES, ignore_errors=True)
    if sync:
        paths = sorted(partial.rglob("*"), key=lambda path: path.is_dir())  # folders after files
        for path in (*paths, partial):
            _sync(path)


def _swap(target: Path) -> None:
    """Put the new folder in place; where the system can, without a moment when there is none."""
    partial, old, journal = (_beside(target, what) for what in ("partial", "old", "journal"))
    if (partial / JOURNAL_FILE).exists():
        (partial / JOURNAL_FILE).rename(journal)  # to be found again if the next rename is not done
    exchanged = target.exists() and _exchange(partial, target)
    if not exchanged:
        if target.exists():
            target.rename(old)
        partial.rename(target)
    journal.unlink(missing_ok=True)
    shutil.rmtree(partial if exchanged else old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, and tell whether that was possible here."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and (
        rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
    )


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError:
        # What a failed fsync lost looks clean from now on: a later run must write it again.
        if path.is_file():
            path.unlink()
        raise
    finally:
        os.close(file)


@contextmanager
def _lock(path: Path, target: Path) -> Iterator[None]:
    with disk_faults(path):
        file = _acquire(path, target)
    try:
        with disk_faults(path):
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
