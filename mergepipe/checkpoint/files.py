"""Opening a file that a stranger made: regular files only, bounded, faults put in plain words."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergepipe.errors import Problems

JSON_CAP_BYTES = 100_000_000
# A broken file can hold 100 000 faults of one kind; nobody reads more than these.
_FAULTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Place:
    """How a model's files are called in messages: by its folder, and its label if that differs."""

    label: str
    folder: Path
    shown: str

    def of(self, file: str = "") -> str:
        """`expert/config.json`, or `math (expert/config.json)` for a model labelled `math`."""
        path = f"{self.shown}/{file}" if file else self.shown
        return path if self.label == self.shown else f"{self.label} ({path})"


class FileFaultError(Exception):
    """A file cannot be used; the text says why. Never leaves this package."""


def report(problems: Problems, where: str, faults: Sequence[str], fix: str = "") -> None:
    """Add `faults` to `problems`, the first few in words and the rest as a count."""
    for fault in faults[:_FAULTS_SHOWN]:
        problems.add(where, fault, fix)
    if len(faults) > _FAULTS_SHOWN:
        problems.add(where, f"and {len(faults) - _FAULTS_SHOWN} more faults in this file")


def check_regular(file: Path) -> int:
    """Size of a regular file in bytes.

    Raises
    ------
    FileFaultError
        if there is no such file, or it is a pipe, device, folder or loop of links.

    """
    try:
        status = file.stat()
    except (OSError, ValueError, RuntimeError) as error:
        raise FileFaultError(why_unreadable(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise FileFaultError(f"not a regular file but a {_kind(status.st_mode)}")
    return status.st_size


@contextmanager
def opened(file: Path) -> Iterator[tuple[int, int]]:
    """File descriptor and size in bytes of a regular file, open for reading.

    Raises
    ------
    FileFaultError
        if it is no regular file or may not be read, also while it is read.

    """
    # A pipe would block on open and a device may act on it, hence the check before.
    check_regular(file)
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield fd, os.fstat(fd).st_size
        finally:
            os.close(fd)
    except OSError as error:
        raise FileFaultError(why_unreadable(error)) from error


def read_json(file: Path) -> Any:
    """Read the value in a JSON file.

    Raises
    ------
    FileFaultError
        if the file cannot be read or holds no JSON, or a key appears twice in an object.

    """
    with opened(file) as (fd, size):
        if size > JSON_CAP_BYTES:
            raise FileFaultError(f"too large for a JSON file ({size:,} bytes)")
        raw = pread_exactly(fd, size, 0)
    value, duplicates = parse_json(raw)
    if duplicates:
        raise FileFaultError(f"key '{duplicates[0]}' appears twice (duplicate) in one JSON object")
    return value


def parse_json(raw: bytes) -> tuple[Any, list[str]]:
    """Give the JSON value in UTF-8 `raw`, and the keys that appear twice in one object.

    Raises
    ------
    FileFaultError
        if it is not UTF-8 or not JSON, or nested too deeply.

    """
    duplicates: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            duplicates.extend(name for name in found if names.count(name) > 1)
        return found

    try:
        return json.loads(raw.decode(), object_pairs_hook=unique), duplicates
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise FileFaultError(f"not valid JSON at {where}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise FileFaultError(f"not valid UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise FileFaultError("not usable JSON: an integer has thousands of digits") from error
    except RecursionError as error:
        raise FileFaultError("not usable JSON: nested too deeply") from error


def pread_exactly(fd: int, count: int, offset: int) -> bytes:
    """`count` bytes from `offset`, fewer only at the end of the file."""
    pieces: list[bytes] = []
    while count > 0 and (piece := os.pread(fd, count, offset)):
        pieces.append(piece)
        offset += len(piece)
        count -= len(piece)
    return b"".join(pieces)


def find_nan(value: Any) -> str | None:
    """Dotted path of the first NaN inside a JSON value."""
    pending = [("", value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, float) and math.isnan(item):
            return path.removeprefix(".")
        if isinstance(item, dict):
            pending += [(f"{path}.{key}", inner) for key, inner in item.items()]
        elif isinstance(item, list):
            pending += [(f"{path}[{at}]", inner) for at, inner in enumerate(item)]
    return None


def why_unreadable(error: Exception) -> str:
    """Why opening or reading a file failed, in the words users search for."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return f"cannot be opened: {error}"


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "named pipe (fifo)",
        stat.S_IFDIR: "directory",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")
