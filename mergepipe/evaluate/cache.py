"""Results that need not be worked out again: an SQLite file, keyed by all that decides a result.

The key is a digest of the model's fingerprint, the evaluator's name, version and source, its
parameters with the content of the files they name, which items were scored, the seed, and
mergepipe's version. Of results only numbers and the ids of items are stored. What a server answers
is stored as it comes, so that a run that is cut off pays for it once. Each is one transaction, so
that a kill at any time leaves a sound file, and several processes may use one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from mergepipe.errors import EnvironmentFault, Problem, printable
from mergepipe.evaluate.evaluator import Evaluator
from mergepipe.evaluate.result import Formula, Item, Metric, Result
from mergepipe.model import Usage

__all__ = ["Cache", "cache_file", "key_of", "open_cache"]

_APPLICATION, _FORMAT = 0x6D706970, 2  # "mpip"; raised when what is stored, or its key, changes
_BUSY_SECONDS = 60.0
_MAX_PATH = 4096
_READ_BYTES = 1 << 20


def cache_file() -> Path:
    """Give the file to use: `$MERGEPIPE_CACHE`, else one in the user's cache folder."""
    named = os.environ.get("MERGEPIPE_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "mergepipe" / "results.db"


def key_of(
    evaluator: Evaluator, parameters: Any, folder: Path, *others: object, fingerprint: str
) -> str:
    """Give the key of a result; empty if it must not be kept.

    `others` are what else decides it, as JSON has it. Files count by their content.

    Raises
    ------
    OSError
        if a file that a parameter names cannot be read.

    """
    allowed = evaluator.cached is None or evaluator.cached(parameters)
    if not (fingerprint and evaluator.digest and allowed):
        return ""
    decisive = [
        _FORMAT,
        version("mergepipe"),
        fingerprint,
        [evaluator.name, evaluator.version, evaluator.digest],
        _canonical(parameters.model_dump(), folder),
        *others,
    ]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _canonical(value: Any, folder: Path) -> Any:
    """Give a parameter as JSON, with the digests of files in place of their paths."""
    if isinstance(value, dict):
        return {str(key): _canonical(one, folder) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(one, folder) for one in value]
    if isinstance(value, Path):
        return ["file", _content(value)]
    if isinstance(value, str):
        return value if not _names_file(value, folder) else [value, _content(folder / value)]
    if isinstance(value, re.Pattern):
        return ["pattern", value.pattern, value.flags]
    return to_jsonable_python(value)


def _names_file(text: str, folder: Path) -> bool:
    try:
        return 0 < len(text) < _MAX_PATH and (folder / text).is_file()
    except (OSError, ValueError):  # too long a name, a NUL
        return False


def _content(path: Path) -> str:
    """Give the digest of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(f"\0{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


class Cache:
    """An open cache; `open_cache` gives one."""

    def __init__(self, file: Path, connection: sqlite3.Connection) -> None:
        self.file, self._connection = file, connection

    def get(self, key: str) -> Result | None:
        """Give the result of a key, None if there is none.

        Raises
        ------
        EnvironmentFault
            if the file is damaged.

        """
        with _faults(self.file):
            query = "SELECT body, digest FROM results WHERE key = ?"
            row = self._connection.execute(query, (key,)).fetchone()
        if row is None:
            return None
        body, digest = row
        if hashlib.sha256(body).digest() != digest:
            raise _damaged(self.file, "a result is not what was stored")
        return _result(json.loads(zlib.decompress(body)))

    def put(self, key: str, result: Result) -> None:
        """Store a result.

        Raises
        ------
        EnvironmentFault
            if it cannot be: a full disk, a file that must not be written. The file is as it was.

        """
        body = zlib.compress(json.dumps(_plain(result), allow_nan=False).encode())
        row = (key, body, hashlib.sha256(body).digest())
        with _faults(self.file), self._connection:
            self._connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", row)

    def answer(self, key: str) -> bytes | None:
        """Give what a server has answered: see `mergepipe.model.api_exchange.Answers`.

        Raises
        ------
        EnvironmentFault
            if the file is damaged.

        """
        with _faults(self.file):
            query = "SELECT body FROM answers WHERE key = ?"
            row = self._connection.execute(query, (key,)).fetchone()
        try:
            return None if row is None else zlib.decompress(row[0])
        except zlib.error as error:
            raise _damaged(self.file, "an answer is not what was stored") from error

    def keep_answer(self, key: str, body: bytes) -> None:
        """Store what a server has answered.

        Raises
        ------
        EnvironmentFault
            if it cannot be stored.

        """
        row = (key, zlib.compress(body))
        with _faults(self.file), self._connection:
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", row)


@contextmanager
def open_cache(file: Path) -> Iterator[Cache]:
    """Open a cache, and make its file if there is none.

    Raises
    ------
    EnvironmentFault
        if it cannot be opened, is damaged, no cache, or of a later version.

    """
    with _faults(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(file, timeout=_BUSY_SECONDS, check_same_thread=False)
    try:
        with _faults(file):
            _prepare(file, connection)
        yield Cache(file, connection)
    finally:
        connection.close()


def _prepare(file: Path, connection: sqlite3.Connection) -> None:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (form,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and owner != _APPLICATION:
        fix = "name another file by MERGEPIPE_CACHE"
        raise EnvironmentFault(Problem(str(file), "is no cache of mergepipe's", fix))
    if form > _FORMAT:
        what = f"was written by a later mergepipe (format {form}, this one reads {_FORMAT})"
        fix = "upgrade mergepipe, name another file by MERGEPIPE_CACHE, or give --no-cache"
        raise EnvironmentFault(Problem(str(file), what, fix))
    if form < _FORMAT:
        with suppress(sqlite3.OperationalError):  # another process does it at this moment
            connection.execute("PRAGMA journal_mode = WAL")
        with connection:  # one transaction: nobody sees a half-made file
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, body BLOB NOT NULL, "
                "digest BLOB NOT NULL) WITHOUT ROWID"
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, body BLOB NOT NULL) "
                "WITHOUT ROWID"
            )
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
    connection.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing, a power cut a result


@contextmanager
def _faults(file: Path) -> Iterator[None]:
    """Name the cache's file in what SQLite and the disk say."""
    try:
        yield
    except sqlite3.OperationalError as error:
        fix = "name another file by MERGEPIPE_CACHE, or give --no-cache"
        what = f"the cache of results cannot be used: {printable(error, 200)}"
        raise EnvironmentFault(Problem(str(file), what, fix)) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(file, printable(error, 200)) from error
    except OSError as error:
        fix = "name another file by MERGEPIPE_CACHE, or give --no-cache"
        what = f"the cache of results cannot be used: {error.strerror}"
        raise EnvironmentFault(Problem(str(file), what, fix)) from error


def _damaged(file: Path, why: str) -> EnvironmentFault:
    fix = "delete it, or give --no-cache; results are worked out again"
    return EnvironmentFault(Problem(str(file), f"the cache of results is damaged: {why}", fix))


def _plain(result: Result) -> dict[str, Any]:
    return {
        "metrics": {name: asdict(metric) for name, metric in result.metrics.items()},
        "items": [[item.id, dict(item.values), item.cluster] for item in result.items],
        "lossy": list(result.lossy),
        "usage": asdict(result.usage),
        "judges": None if result.judges is None else asdict(result.judges),
    }


def _result(plain: Any) -> Result:
    metrics = {}
    for name, stored in plain["metrics"].items():
        formula = stored.pop("formula")
        metrics[name] = Metric(**stored, formula=None if formula is None else Formula(**formula))
    items = tuple(Item(name, values, cluster) for name, values, cluster in plain["items"])
    judges = plain["judges"]
    return Result(
        metrics,
        items,
        lossy=tuple(plain["lossy"]),
        usage=Usage(**plain["usage"]),
        judges=None if judges is None else Usage(**judges),
    )
