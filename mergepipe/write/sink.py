"""The file sink: headers first, then tensor bytes at their planned offsets, in any order."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mergepipe.checkpoint import DTYPES
from mergepipe.errors import EnvironmentFault, Problem
from mergepipe.plan import Layout, Step
from mergepipe.plan.layout import INDEX_FILE

__all__ = ["FileSink"]


class FileSink:
    """Writes the shards of a layout into a folder; use it as a context manager.

    Raises
    ------
    EnvironmentFault
        if the disk is full or cannot be written.

    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._files: list[int] = []

    def __enter__(self) -> Self:
        try:
            for shard in self.layout.shards:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                file = os.open(self.folder / shard.file, flags, 0o666)
                self._files.append(file)
                os.truncate(file, shard.size)
                _write_all(file, shard.header, 0)
        except OSError as error:
            self._close()
            raise _fault(self.folder, error) from error
        return self

    def write(self, step: Step, start: int, data: NDArray[np.uint8]) -> None:
        """Write the bytes of elements of `step` from flat index `start` on."""
        shard, offset = self.layout.place[step.name]
        try:
            _write_all(self._files[shard], data.data, offset + start * DTYPES[step.dtype].itemsize)
        except OSError as error:
            raise _fault(self.folder / self.layout.shards[shard].file, error) from error

    def finish(self, step: Step, inputs: tuple[str, ...], note: str) -> None:
        """Know that a step is whole."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                for file in self._files:
                    os.fsync(file)
                index = self.layout.index()
                if index is not None:
                    (self.folder / INDEX_FILE).write_bytes(index)
        except OSError as fault:
            raise _fault(self.folder, fault) from fault
        finally:
            self._close()

    def _close(self) -> None:
        while self._files:
            os.close(self._files.pop())


def _write_all(file: int, data: bytes | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(file, rest, offset)
        rest, offset = rest[done:], offset + done


def _fault(place: Path, error: OSError) -> EnvironmentFault:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else f"cannot be written: {error.strerror}"
    return EnvironmentFault(Problem(str(place), what, "free some space and run again" * full))
