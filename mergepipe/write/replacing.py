"""One file written anew in one step: a reader sees the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path

from mergepipe.write.faults import disk_faults

__all__ = ["replace_file"]


def replace_file(file: Path, data: bytes) -> None:
    """Write a file, in place of the one that may be there, and wait until the disk has it.

    Raises
    ------
    EnvironmentFault
        if the disk fails; the old file is then as it was.

    """
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with disk_faults(file):
        try:
            with fresh.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
