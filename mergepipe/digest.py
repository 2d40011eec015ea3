"""blake3 digests of files and of parts of files: several at a time, in little memory."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from blake3 import blake3

__all__ = ["Span", "digest_file", "digest_header", "digest_of", "digest_spans"]

_PIECE_BYTES = 4 << 20
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of `file` from `start` to `stop`."""

    file: Path
    start: int
    stop: int


def digest_of(data: bytes) -> str:
    """Digest of bytes, in hexadecimal."""
    return str(blake3(data).hexdigest())


def digest_file(file: Path) -> str:
    """Digest of a whole file."""
    return _digest(Span(file, 0, file.stat().st_size), bytearray(_PIECE_BYTES), _never)


def digest_header(file: Path) -> str:
    """Digest of a safetensors file's header and the 8 bytes of its length.

    A length that the file cannot hold gives the digest of the whole file.
    """
    with file.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
    stop = _LENGTH_BYTES + int.from_bytes(start, "little")
    span = Span(file, 0, min(stop, file.stat().st_size))
    return _digest(span, bytearray(_PIECE_BYTES), _never)


def digest_spans(spans: Sequence[Span], threads: int) -> list[str | OSError]:
    """Digests of spans in their order, or why one could not be read.

    Memory does not grow with the spans: each thread reads piece by piece into a buffer of its own.
    """
    buffers: SimpleQueue[bytearray] = SimpleQueue()
    stop = threading.Event()
    for _ in range(threads):
        buffers.put(bytearray(_PIECE_BYTES))

    def digest(span: Span) -> str | OSError:
        buffer = buffers.get()
        try:
            return _digest(span, buffer, stop.is_set)
        except OSError as error:
            return error
        finally:
            buffers.put(buffer)

    with ThreadPoolExecutor(threads, "mergepipe-digest") as pool:
        try:
            return list(pool.map(digest, spans))
        except BaseException:  # Ctrl-C: a large tensor on a slow disk takes long
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _never() -> bool:
    return False


def _digest(span: Span, buffer: bytearray, stopped: Callable[[], bool]) -> str:
    hasher, at, view = blake3(), span.start, memoryview(buffer)
    file = os.open(span.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while at < span.stop and not stopped():
            count = os.preadv(file, [view[: span.stop - at]], at)
            if count == 0:
                raise OSError(errno.EIO, "the file ends early", str(span.file))
            hasher.update(view[:count])
            at += count
    finally:
        os.close(file)
    return str(hasher.hexdigest())
