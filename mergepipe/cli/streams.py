"""Standard streams that cannot harm a merge: closed ones, full ones, readers that went away."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO, cast

__all__ = ["safe_streams"]

_STANDARD = 3  # stdin, stdout, stderr


@contextmanager
def safe_streams() -> Iterator[None]:
    """Print to nowhere, in the block, once nobody reads; messages also where they find no room."""
    _open_closed()
    out = cast("TextIO", _Safe(sys.stdout, (BrokenPipeError,)))
    err = cast("TextIO", _Safe(sys.stderr, (OSError, ValueError)))
    with redirect_stdout(out), redirect_stderr(err):
        yield


def _open_closed() -> None:
    """Occupy closed standard streams, or the next file opened, a shard, would be one of them."""
    while (file := os.open(os.devnull, os.O_RDWR)) < _STANDARD:
        os.set_inheritable(file, True)
    os.close(file)


class _Safe(io.TextIOBase):
    """A text stream that goes quiet at its first fault of certain kinds."""

    def __init__(self, stream: TextIO | None, faults: tuple[type[Exception], ...]) -> None:
        self._stream, self._faults = stream, faults

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except self._faults:
                self._silence()
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except self._faults:
                self._silence()

    def _silence(self) -> None:
        """Let what is still buffered, and all that comes, go to nowhere."""
        stream, self._stream = self._stream, None
        assert stream is not None, "it was just written to"
        with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), stream.fileno())

    def isatty(self) -> bool:
        # Libraries keep the stream and ask it as the process ends.
        stream = self._stream
        return stream is not None and not stream.closed and stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8" if self._stream is None else self._stream.encoding
