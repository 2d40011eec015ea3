"""What an unfinished output holds already: one line for every tensor that is whole.

The first line is the head: all that the tensors depend on. A line is believed only if it carries
the digest of its own text, so that a line torn by a crash, or damaged, is as good as absent.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mergepipe.digest import digest_of
from mergepipe.write.faults import disk_faults

__all__ = ["JOURNAL_FILE", "Journal", "Record", "read_journal"]

JOURNAL_FILE = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """A tensor that is whole on disk: its digest, those of its inputs, what is to be known."""

    stage: str
    tensor: str
    digest: str
    inputs: tuple[str, ...]
    note: str


class Journal:
    """Records tensors as they become whole; safe to use from several threads.

    The file appears with the first record: before, there is nothing to go on with.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any]) -> None:
        self.file, self.head = folder / JOURNAL_FILE, head
        self.records: dict[tuple[str, str], Record] = {}
        self._lock = threading.Lock()

    def start(self, records: Iterable[Record]) -> None:
        """Begin with what an earlier run made and what is still so."""
        for record in records:
            self.records[record.stage, record.tensor] = record
        fresh = self.file.with_suffix(".new")
        with disk_faults(self.file):
            if self.records:
                lines = [_line(self.head), *(_line(asdict(r)) for r in self.records.values())]
                fresh.write_bytes(b"".join(lines))
                fresh.replace(self.file)
            else:
                self.file.unlink(missing_ok=True)

    def add(self, record: Record) -> None:
        """Append a record. Its tensor must be written, though not yet be on the disk itself."""
        with self._lock, disk_faults(self.file):
            text = b"" if self.records else _line(self.head)
            file = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                _append(file, text + _line(asdict(record)))
            finally:
                os.close(file)
            self.records[record.stage, record.tensor] = record

    def of(self, stage: str) -> dict[str, Record]:
        """Give the records of a stage by tensor."""
        return {name: one for (owner, name), one in self.records.items() if owner == stage}


def read_journal(folder: Path) -> tuple[Any, list[Record]]:
    """Give the head and the records of an unfinished output; None and nothing if it has none."""
    try:
        lines = (folder / JOURNAL_FILE).read_bytes().split(b"\n")
    except OSError:
        return None, []
    head, *values = [_value(line) for line in lines]
    if not isinstance(head, dict):
        return None, []
    known = {field.name for field in fields(Record)}
    whole = [value for value in values if isinstance(value, dict) and value.keys() == known]
    return head, [Record(**{**value, "inputs": tuple(value["inputs"])}) for value in whole]


def _line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value)
    return json.dumps({"value": value, "check": digest_of(text.encode())[:16]}).encode() + b"\n"


def _value(line: bytes) -> Any:
    """Give what a line says; None if it is torn or damaged."""
    try:
        found = json.loads(line)
        value, check = found["value"], found["check"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if digest_of(json.dumps(value).encode())[:16] == check else None


def _append(file: int, text: bytes) -> None:
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(file, rest) :]
