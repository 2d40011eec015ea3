"""The index of a sharded checkpoint, and whether the shards hold what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergepipe.checkpoint.files import FileFaultError, Place, read_json, report
from mergepipe.checkpoint.tensors import Stored
from mergepipe.errors import Problems


@dataclass(frozen=True, slots=True)
class Index:
    """Which shard holds which tensor, and the total bytes the index claims (None if unsaid)."""

    weight_map: Mapping[str, str]
    total_size: int | None

    @property
    def shards(self) -> tuple[str, ...]:
        """The shard files, in the order in which they are first named."""
        return tuple(dict.fromkeys(self.weight_map.values()))


def read_index(place: Place, file: str, problems: Problems) -> Index | None:
    """Read a `*.index.json`; None if it cannot be trusted to name files of its own folder."""
    try:
        value = read_json(place.folder / file)
    except FileFaultError as fault:
        problems.add(place.of(file), str(fault), "fetch the index again")
        return None
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict):
        fix = "fetch the index again"
        problems.add(place.of(file), "weight_map is missing or is not a JSON object", fix)
        return None
    faults = _map_faults(weight_map)
    report(problems, place.of(file), faults, "the index maps tensor names to files of its folder")
    if faults:
        return None
    metadata = value.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return Index(weight_map, total if isinstance(total, int) else None)


def _map_faults(weight_map: Mapping[str, Any]) -> list[str]:
    if not weight_map:
        return ["weight_map is empty: no tensor"]
    unhashable = [
        f"weight_map gives '{name}' no file name but {file!r}"
        for name, file in weight_map.items()
        if not isinstance(file, str)
    ]
    if unhashable:
        return unhashable
    reasons = ((file, _why_unsafe(file)) for file in dict.fromkeys(weight_map.values()))
    return [f"weight_map names '{file}': {reason}" for file, reason in reasons if reason]


def _why_unsafe(file: str) -> str | None:
    """Why `file` is no plain file name; an index must never lead out of its folder."""
    if "://" in file:
        return "a URL is not allowed; only names of files in this folder are"
    if file.startswith(("/", "\\")):
        return "an absolute path is not allowed"
    if "/" in file or "\\" in file or file in {"", ".", ".."}:
        return "a path outside this folder, or into another, is not allowed"
    if "\0" in file or any("\ud800" <= char <= "\udfff" for char in file):
        return "not a valid file name"
    return None


def index_faults(index: Index, held: Mapping[str, Mapping[str, Stored]]) -> list[str]:
    """Where the index and the shards that could be read (`held`) contradict each other."""
    where: dict[str, list[str]] = {}
    for shard, tensors in held.items():
        for name in tensors:
            where.setdefault(name, []).append(shard)
    faults = [
        f"tensor '{name}' is stored twice (duplicate): in both {' and '.join(shards)}"
        for name, shards in where.items()
        if len(shards) > 1
    ]
    faults += [
        f"tensor '{name}' is in shard {shards[0]} but not in weight_map"
        for name, shards in where.items()
        if name not in index.weight_map
    ]
    for name, shard in index.weight_map.items():
        # What a shard that could not be read would hold is unknown.
        if shard in held and name not in held[shard]:
            faults.append(_misplaced(name, shard, where.get(name, [])))
    return faults


def _misplaced(name: str, shard: str, actual: list[str]) -> str:
    if actual:
        return f"tensor '{name}' is said to be in {shard}, but it is in {actual[0]}"
    return f"tensor '{name}' is listed for {shard}, but no shard has it"
