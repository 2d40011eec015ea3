"""What tells one model from another, by the content of its files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from blake3 import blake3
from xxhash import xxh3_128

from mergepipe.errors import EnvironmentFault, Problem
from mergepipe.model.companions import Companions

__all__ = [
    "file_digest",
    "fingerprint_beside",
    "fingerprint_of",
    "known_beside",
    "precision_of",
    "weight_digests",
]

_WEIGHTS = (".safetensors", ".bin", ".index.json")
_TOKENIZERS = (
    "tokenizer*",
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
)
_PIECE_BYTES = 4 << 20
_YOUNG_SECONDS = 2  # a file that changed just now may change again with the same time


def fingerprint_of(companions: Companions, dtype: str, weights: object) -> str:
    """Give a model's fingerprint: of its configuration, tokenizer, template, dtype and weights.

    `weights` is JSON that says what they are: digests of files, or all that a merge is made of.
    """
    return fingerprint_beside(known_beside(companions), dtype, weights)


def precision_of(dtype: str, device: str) -> str:
    """Give what a fingerprint says of how a model computes: no two kinds of device agree on bits.

    >>> precision_of("float32", "cpu"), precision_of("bfloat16", "cuda:1")
    ('float32', 'bfloat16 on cuda')
    """
    kind = device.partition(":")[0]
    return dtype if kind == "cpu" else f"{dtype} on {kind}"


def known_beside(companions: Companions) -> list[object]:
    """Give what a fingerprint says of what stands beside the weights."""
    files = {path.name: file_digest(path) for path in _tokenizer_files(companions)}
    return [dict(companions.settings), files, companions.jinja]


def fingerprint_beside(known: list[object], dtype: str, weights: object) -> str:
    """Give the fingerprint of weights beside what is known: see `fingerprint_of`."""
    parts = [*known, dtype, weights]
    return str(blake3(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32])


def _tokenizer_files(companions: Companions) -> Iterator[Path]:
    found = {path for glob in _TOKENIZERS for path in companions.folder.glob(glob)}
    yield from sorted(path for path in found if path.is_file())
    generation = companions.folder / "generation_config.json"  # may name what ends a text
    if generation.is_file():
        yield generation


def weight_digests(folder: Path) -> dict[str, str]:
    """Give the digests of a checkpoint folder's weights, by file."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith(_WEIGHTS))
    return {path.name: file_digest(path) for path in files}


def file_digest(file: Path) -> str:
    """Give the XXH3 digest of a file's bytes.

    It is remembered in the user's cache by path, size, inode and time of change, so that a large
    file is read once.

    Raises
    ------
    EnvironmentFault
        if the file cannot be read.

    """
    try:
        status = file.stat()
        key = [str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]
        place = _cache() / str(blake3(json.dumps(key).encode()).hexdigest()[:32])
        known = _remembered(place)
        if known:
            return known
        found = _digest(file)
    except OSError as error:
        raise EnvironmentFault(Problem(str(file), f"cannot be read: {error.strerror}")) from error
    if time.time() - status.st_mtime > _YOUNG_SECONDS:
        _remember(place, found)
    return found


def _digest(file: Path) -> str:
    hasher = xxh3_128()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            hasher.update(piece)
    return hasher.hexdigest()


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "mergepipe" / "digests"


def _remembered(place: Path) -> str:
    try:
        return place.read_text("ascii")
    except (OSError, ValueError):
        return ""


def _remember(place: Path, digest: str) -> None:
    """Write in one step, since others may read; a cache that cannot be written is none."""
    fresh = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(digest, "ascii")
        fresh.replace(place)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
