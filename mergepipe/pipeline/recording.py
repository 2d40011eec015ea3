"""How a run went: `run.json` beside the result. It differs from run to run; the manifest does not.

It holds no absolute path and no name of a user or machine.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mergepipe.errors import printable
from mergepipe.manifest import RUN_FILE
from mergepipe.model import Model
from mergepipe.pipeline.preparing import Prepared
from mergepipe.report.paths import without_paths
from mergepipe.write import disk_faults

__all__ = ["Recorder", "add_scoring", "timed"]

_FORMAT = 1
_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


class Recorder:
    """Takes the time of the parts of one run."""

    def __init__(self) -> None:
        self._started = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._cpu = _cpu_seconds()
        self._parts: list[dict[str, object]] = []

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Take the time of a part that ends well."""
        began = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - began, 4)
        self._parts.append({"what": what, "seconds": seconds})

    def write(
        self, prepared: Prepared, folder: Path, *, kept: int, warnings: Sequence[str]
    ) -> None:
        """Write the record into the folder of the result, which is not in its place yet."""
        resources, usage = prepared.resources, resource.getrusage(resource.RUSAGE_SELF)
        found: dict[str, object] = {
            "format": _FORMAT,
            "started": self._started,
            "parts": self._parts,
            "cpu_seconds": round(_cpu_seconds() - self._cpu, 3),
            "peak_bytes": usage.ru_maxrss * _UNIT,
            "bytes_read": sum(plan.bytes_read for plan in prepared.plans),
            "threads": prepared.threads,
            "max_memory": resources.max_memory,
            "device": resources.device,
            "kept_tensors": kept,
            "warnings": [without_paths(one) for one in warnings],
            "recipe_folder": _from_here(prepared, prepared.recipe.file.parent),
            "model_folders": _model_folders(prepared),
        }
        with disk_faults(folder / RUN_FILE):
            (folder / RUN_FILE).write_bytes(_text(found))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _from_here(prepared: Prepared, folder: Path) -> str | None:
    """Give a folder as seen from the result's, unless that leads through the root."""
    assert prepared.target is not None, "a run has a target"
    target, there = prepared.target.resolve(), folder.resolve()
    shared = os.path.commonpath([target, there])
    return None if shared == os.sep else os.path.relpath(there, target)


def _model_folders(prepared: Prepared) -> list[str]:
    """Give the folders that hold the models of this machine, as seen from the result's."""
    sources = prepared.recipe.sources.values()
    places = (place for one in sources for place in (one.path, one.adapter) if place is not None)
    seen = (_from_here(prepared, place.resolve().parent) for place in places)
    return list(dict.fromkeys(one for one in seen if one is not None))


def timed(models: Iterable[Model], seconds: dict[str, float]) -> Iterator[Model]:
    """Give models one after the other; `seconds` gets how long each was used."""
    for model in models:
        began = time.perf_counter()
        yield model
        seconds[model.name] = round(time.perf_counter() - began, 4)


def add_scoring(folder: Path, seconds: dict[str, float]) -> None:
    """Add how long it took to score each model to the record, if there is one."""
    file = folder / RUN_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    _write(file, {**found, "scoring": {printable(k, 200): v for k, v in seconds.items()}})


def _text(found: Mapping[str, Any]) -> bytes:
    return (json.dumps(found, indent=1) + "\n").encode()


def _write(file: Path, found: Mapping[str, Any]) -> None:
    """Write a file in one step."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with disk_faults(file):
        try:
            fresh.write_bytes(_text(found))
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
