"""What the operating system refuses, in words that say what to do."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergepipe.errors import EnvironmentFault, Problem

__all__ = ["disk_faults"]

_WORDS = {
    errno.ENOSPC: ("the disk is full", "free some space (or inodes) and run again"),
    errno.EDQUOT: ("your disk quota is used up", "free some space and run again"),
    errno.EFBIG: (
        "the file is larger than its file system or `ulimit -f` allows",
        "set a smaller output.max_shard_size",
    ),
    errno.EIO: ("the disk reports an error (EIO)", "check the disk, or write to another"),
    errno.EMFILE: (
        "more files than may be open at once",
        "raise `ulimit -n`, or set a larger output.max_shard_size",
    ),
    errno.EROFS: ("the file system is read-only", "choose another place by --out"),
}


@contextmanager
def disk_faults(place: Path) -> Iterator[None]:
    """Turn an `OSError` into an `EnvironmentFault` that names the file, or else `place`.

    Raises
    ------
    EnvironmentFault
        if the block raises an `OSError`.

    """
    try:
        yield
    except shutil.Error as error:  # of copytree: (from, to, why) for each file
        _, where, why = error.args[0][0]
        raise EnvironmentFault(Problem(str(where), f"cannot be written: {why}")) from error
    except OSError as error:
        where = error.filename2 or error.filename or place
        why = (f"cannot be read or written: {error.strerror or error}", "")
        what, fix = _WORDS.get(error.errno or 0, why)
        raise EnvironmentFault(Problem(str(where), what, fix)) from error
