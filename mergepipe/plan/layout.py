"""Where each output tensor goes: shards, headers, offsets; known before a byte is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergepipe.checkpoint import DTYPES

__all__ = ["INDEX_FILE", "Layout", "Shard", "arrange"]

INDEX_FILE = "model.safetensors.index.json"
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its header, and the absolute offset of each of its tensors."""

    file: str
    header: bytes
    offsets: Mapping[str, int]
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """All output files. `place[name]` is (shard number, absolute offset)."""

    shards: tuple[Shard, ...]
    place: Mapping[str, tuple[int, int]]
    data_bytes: int

    def index(self) -> bytes | None:
        """Give the text of `model.safetensors.index.json`; None for a single file."""
        if len(self.shards) == 1:
            return None
        weight_map = {name: self.shards[n].file for name, (n, _) in self.place.items()}
        index = {"metadata": {"total_size": self.data_bytes}, "weight_map": weight_map}
        return (json.dumps(index, indent=2) + "\n").encode()


def arrange(tensors: Sequence[tuple[str, str, tuple[int, ...]]], max_shard_bytes: int) -> Layout:
    """Lay (name, dtype, shape) out over shards of at most `max_shard_bytes` of data.

    Tensors keep their order over shards; a single larger tensor has a shard of its own. Within a
    shard wide dtypes come first, so that every tensor is aligned to its element size.
    """
    parts = _split(tensors, max_shard_bytes)
    total = len(parts)
    shards = tuple(
        _shard(
            part,
            "model.safetensors" if total == 1 else f"model-{i:05d}-of-{total:05d}.safetensors",
        )
        for i, part in enumerate(parts, 1)
    )
    starts = {name: (n, at) for n, shard in enumerate(shards) for name, at in shard.offsets.items()}
    return Layout(
        shards=shards,
        place={name: starts[name] for name, _, _ in tensors},
        data_bytes=sum(_nbytes(dtype, shape) for _, dtype, shape in tensors),
    )


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    count = DTYPES[dtype].itemsize
    for extent in shape:
        count *= extent
    return count


def _split(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], limit: int
) -> list[list[tuple[str, str, tuple[int, ...]]]]:
    parts: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _nbytes(*tensor[1:])
        if parts[-1] and filled + size > limit:
            parts.append([])
            filled = 0
        parts[-1].append(tensor)
        filled += size
    return parts


def _shard(part: Sequence[tuple[str, str, tuple[int, ...]]], file: str) -> Shard:
    ordered = sorted(part, key=lambda tensor: -DTYPES[tensor[1]].itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    relative = {}
    for name, dtype, shape in ordered:
        start, end = end, end + _nbytes(dtype, shape)
        relative[name] = start
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    first = 8 + len(text)
    return Shard(
        file=file,
        header=len(text).to_bytes(8, "little") + text,
        offsets={name: first + start for name, start in relative.items()},
        size=first + end,
    )
