"""The file sink: headers first, then tensor bytes at their planned offsets, in any order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from typing_extensions import Self

from mergepipe.checkpoint import DTYPES
from mergepipe.plan import Layout, Step
from mergepipe.plan.layout import INDEX_FILE
from mergepipe.write.faults import disk_faults

__all__ = ["Done", "FileSink"]

Done: TypeAlias = Callable[[Step, str, tuple[str, ...], str], None]


class FileSink:
    """Writes the shards of a layout into a folder; use it as a context manager.

    Tensors that are in the folder already stay as they are. `done(step, digest, inputs, note)` is
    called when a tensor is whole, from the thread that made it; with `sync`, the shards are on the
    disk when the block ends.

    Raises
    ------
    EnvironmentFault
        if the disk is full or cannot be written.

    """

    def __init__(
        self, folder: Path, layout: Layout, *, done: Done | None = None, sync: bool = False
    ) -> None:
        self.folder, self.layout, self.sync = folder, layout, sync
        self._done = done
        self._files: list[int] = []
        self._hashers: dict[str, blake3] = {}

    def __enter__(self) -> Self:
        try:
            for shard in self.layout.shards:
                path = self.folder / shard.file
                with disk_faults(path):
                    self._files.append(_open(path))
                    os.ftruncate(self._files[-1], shard.size)
                    _write_all(self._files[-1], shard.header, 0)
        except BaseException:
            self._close()
            raise
        return self

    def write(self, step: Step, start: int, data: NDArray[np.uint8]) -> None:
        """Write the bytes of elements of `step` from flat index `start` on."""
        shard, offset = self.layout.place[step.name]
        if self._done is not None:
            if start == 0:  # a step may begin again
                self._hashers[step.name] = blake3()
            self._hashers[step.name].update(data.data)
        with disk_faults(self._path(shard)):
            _write_all(self._files[shard], data.data, offset + start * DTYPES[step.dtype].itemsize)

    def finish(self, step: Step, inputs: tuple[str, ...], note: str) -> None:
        """Know that a step is whole."""
        if self.sync:
            self._start_writing_back(step)
        if self._done is not None:
            # One thread makes a step, so no two threads ever ask for the same name.
            digest = str(self._hashers.pop(step.name).hexdigest())
            self._done(step, digest, inputs, note)

    def _start_writing_back(self, step: Step) -> None:
        """Let the disk begin now, so that the sync at the end has little left to wait for."""
        if hasattr(os, "posix_fadvise"):
            shard, start = self.layout.place[step.name]
            count = DTYPES[step.dtype].itemsize * step.numel
            os.posix_fadvise(self._files[shard], start, count, os.POSIX_FADV_DONTNEED)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self.sync:
                self._sync()
        finally:
            self._close()
        if kind is None:
            self._write_index()

    def _sync(self) -> None:
        for shard, file in enumerate(self._files):
            with disk_faults(self._path(shard)):
                try:
                    os.fsync(file)
                except OSError:
                    # The kernel now calls the lost pages clean: reading them again, or another
                    # fsync, would find nothing wrong. The shard has to be made again.
                    self._path(shard).unlink()
                    raise

    def _write_index(self) -> None:
        index = self.layout.index()
        if index is not None:
            with disk_faults(self.folder / INDEX_FILE):
                (self.folder / INDEX_FILE).write_bytes(index)

    def _path(self, shard: int) -> Path:
        return self.folder / self.layout.shards[shard].file

    def _close(self) -> None:
        while self._files:
            os.close(self._files.pop())


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _write_all(file: int, data: bytes | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(file, rest, offset)
        rest, offset = rest[done:], offset + done
