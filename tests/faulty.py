"""How a broken model folder is made, opened and judged; the tables are in test_*_faults.py."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_raw

from mergepipe.checkpoint import Checkpoint, ModelSource, open_checkpoint
from mergepipe.errors import InputError, Problems

MOST_SECONDS = 10.0


@dataclass(frozen=True)
class Row:
    """A way to break a healthy folder, and what must then be said."""

    what: str
    harm: Callable[[Path], Any]
    names: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    warns: tuple[str, ...] = field(default=())


def rows(*table: Row) -> Any:
    assert table
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.what) for row in table])


def local(folder: Path, label: str = "", **adapter: Any) -> ModelSource:
    return ModelSource(label or folder.name, folder, None, None, adapter.get("adapter"))


def open_timed(source: ModelSource) -> tuple[Checkpoint | None, Problems]:
    problems, began = Problems(), time.monotonic()
    checkpoint = open_checkpoint(source, problems)
    assert time.monotonic() - began < MOST_SECONDS
    return checkpoint, problems


def refused(row: Row, folder: Path) -> str:
    """Harm `folder`, and give the error that opening it ends with, once its words are checked."""
    row.harm(folder)
    checkpoint, problems = open_timed(local(folder))
    assert checkpoint is None
    with pytest.raises(InputError) as caught:
        problems.raise_any()
    message = str(caught.value)
    for name in (folder.name, *row.names):
        assert name in message
    assert not row.one_of or any(word.lower() in message.lower() for word in row.one_of), message
    assert_clean(message)
    return message


def survived(row: Row, folder: Path) -> Checkpoint:
    """Harm `folder`, which must open all the same, with the row's warnings."""
    row.harm(folder)
    checkpoint, problems = open_timed(local(folder))
    assert checkpoint is not None, problems
    said = "\n".join(problems.warnings)
    assert all(word in said for word in row.warns), said
    assert_clean(said)
    return checkpoint


def assert_clean(message: str) -> None:
    hidden = {char for char in message if unicodedata.category(char) in {"Cc", "Cf"}} - {"\n"}
    assert not hidden
    assert "Traceback" not in message
    assert "root:" not in message  # the start of /etc/passwd


def edit_header(path: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the header of a safetensors file in place; the data stays."""
    raw = path.read_bytes()
    stop = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:stop])
    edit(header)
    return write_raw(path, json.dumps(header).encode(), raw[stop:])


def parts(path: Path) -> tuple[bytes, bytes]:
    """Header and data of a safetensors file."""
    raw = path.read_bytes()
    stop = 8 + int.from_bytes(raw[:8], "little")
    return raw[8:stop].rstrip(), raw[stop:]
