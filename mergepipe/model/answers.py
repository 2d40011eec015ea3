"""What models were asked and answered: nobody is asked the same twice, and no server in vain.

A file keeps answers for later runs. It holds texts that models wrote, and is its owner's alone to
read; questions are digests there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from mergepipe.errors import EnvironmentFault, MergepipeError, Problem, printable
from mergepipe.model import Ability, Generation, Model, Prompt, Usage
from mergepipe.model.traces import Known, Trace, traceable

__all__ = ["Answers", "Remembered"]

T = TypeVar("T", Trace, Generation)

_AT_ONCE = 64  # questions, so that little is lost if they are cut off
_BUSY_SECONDS = 60.0


@dataclass(slots=True)
class Answers:
    """Answers by the digests of their questions: in memory, and in `file` if there is one."""

    file: Path | None = None
    _known: dict[str, Trace | Generation] = field(default_factory=dict)

    def recall(self, keys: Sequence[str], kind: type[T]) -> dict[str, T]:
        """Give the answers that are known.

        Raises
        ------
        EnvironmentFault
            if the file cannot be read.

        """
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        if missing and self.file is not None and self.file.is_file():
            with _opened(self.file) as connection:
                for key in missing:
                    query = "SELECT body FROM answers WHERE key = ?"
                    row = connection.execute(query, (key,)).fetchone()
                    if row is not None:
                        self._known[key] = _read(kind, row[0])
        found = {key: self._known[key] for key in keys if key in self._known}
        return {key: one for key, one in found.items() if isinstance(one, kind)}

    def keep(self, found: Mapping[str, Trace | Generation]) -> None:
        """Keep answers.

        Raises
        ------
        EnvironmentFault
            if the file cannot be written.

        """
        self._known.update(found)
        if self.file is not None and found:
            rows = [(key, _written(one)) for key, one in found.items()]
            with _opened(self.file) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)


@dataclass(slots=True)
class Remembered:
    """A model that is asked only what it has not answered yet."""

    model: Known
    answers: Answers

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def fingerprint(self) -> str:
        """The model's."""
        return self.model.fingerprint

    @property
    def abilities(self) -> frozenset[Ability]:
        """The model's."""
        return self.model.abilities

    @property
    def usage(self) -> Usage:
        """What the model was asked, which may be nothing."""
        return self.model.usage

    def trace(self, requests: Sequence[tuple[str, str]]) -> list[Trace]:
        """See `Traceable`."""
        keys = self._keys("trace", requests)
        return self._all(keys, requests, lambda new: traceable(self.model).trace(new), Trace)

    def trace_texts(self, texts: Sequence[str], *, stride: int | None = None) -> list[Trace]:
        """See `Traceable`."""
        keys = self._keys("texts", texts, stride)
        return self._all(
            keys,
            texts,
            lambda new: traceable(self.model).trace_texts(new, stride=stride),
            Trace,
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        """See `Model`."""
        settings: dict[str, Any] = {
            "stop": list(stop),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        keys = self._keys("generate", prompts, settings)
        writer = cast("Model", self.model)
        return self._all(keys, prompts, lambda new: writer.generate(new, **settings), Generation)

    def _keys(self, kind: str, questions: Sequence[Any], *settings: object) -> list[str]:
        known = hashlib.sha256(json.dumps([self.model.fingerprint, kind, *settings]).encode())
        keys = []
        for one in questions:
            key = known.copy()
            key.update(json.dumps(one).encode())
            keys.append(key.hexdigest())
        return keys

    def _all(
        self,
        keys: Sequence[str],
        questions: Sequence[Any],
        ask: Callable[[list[Any]], list[T]],
        kind: type[T],
    ) -> list[T]:
        found = self.answers.recall(keys, kind)
        new = {key: one for key, one in zip(keys, questions, strict=True) if key not in found}
        names = list(new)
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            try:
                answered = dict(zip(some, ask([new[key] for key in some]), strict=True))
            except MergepipeError as error:
                self._save(some, error)
                raise
            self.answers.keep(answered)
            found |= answered
        return [found[key] for key in keys]

    def _save(self, keys: Sequence[str], error: MergepipeError) -> None:
        """Keep what a server had answered before it failed: it may have been paid for."""
        from mergepipe.model.api_faults import ApiFault, ApiRefusal

        answers = error.answers if isinstance(error, ApiFault | ApiRefusal) else ()
        if len(answers) == len(keys):
            pairs = zip(keys, answers, strict=True)
            self.answers.keep(
                {key: one for key, one in pairs if isinstance(one, Trace | Generation)}
            )


def _written(answer: Trace | Generation) -> bytes:
    return zlib.compress(json.dumps(astuple(answer), allow_nan=False).encode())


def _read(kind: type[T], body: bytes) -> T:
    values = json.loads(zlib.decompress(body))
    made: Any = kind
    found: T = made(*(tuple(one) if isinstance(one, list) else one for one in values))
    return found


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        with closing(sqlite3.connect(file, timeout=_BUSY_SECONDS)) as connection:
            table = "answers (key TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID"
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            yield connection
    except (OSError, sqlite3.Error, zlib.error, ValueError, TypeError) as error:
        what = f"the answers of models cannot be kept: {printable(error, 200)}"
        fix = "move it away, or name another place by MERGEPIPE_CACHE, or give --no-cache"
        raise EnvironmentFault(Problem(str(file), what, fix)) from error
