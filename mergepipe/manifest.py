"""`mergepipe.json`: what a checkpoint was made of, and a digest of every byte of it.

It names no time, no machine and no absolute path, so that the same recipe over the same inputs
gives the same bytes. Once the result was scored, `results` holds the scores and the digest of
results.jsonl. The last field is the digest of the text before it. A manifest that is read may come
from a stranger: its names must stay inside the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mergepipe.digest import digest_of
from mergepipe.errors import InputError, Problem

__all__ = [
    "BESIDE_FILES",
    "CARD_FILE",
    "FORMAT",
    "MANIFEST_FILE",
    "MEASURED_FILE",
    "PAGE_FILE",
    "RESULTS_FILE",
    "RUN_FILE",
    "SIGNATURE_FILE",
    "Manifest",
    "Part",
    "manifest_bytes",
    "read_manifest",
]

MANIFEST_FILE = "mergepipe.json"
RESULTS_FILE = "results.jsonl"  # scores, written beside a checkpoint once it is whole
RUN_FILE = "run.json"  # when and how fast it was made, which differs from run to run
PAGE_FILE, MEASURED_FILE = "report.html", "inspect.json"  # a report, and what it measured
CARD_FILE, SIGNATURE_FILE = "README.md", "model.sig"  # made of a result, once it is whole
BESIDE_FILES = (RESULTS_FILE, RUN_FILE, PAGE_FILE, MEASURED_FILE, CARD_FILE, SIGNATURE_FILE)
FORMAT = 1
_MOST_BYTES = 1_000_000_000
_SEAL = "blake3"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Part:
    """A file by its size, and the digest of all of it or, for a shard, of its header."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The output side of a manifest, by names that stay inside the folder, and all of its JSON."""

    files: Mapping[str, Part]
    shards: Mapping[str, Part]
    tensors: Mapping[str, tuple[str, str]]  # tensor -> (shard, digest)
    is_sealed: bool  # whether its text is what was written
    content: Mapping[str, Any]
    results: Part | None = None  # results.jsonl, where the result was scored


def manifest_bytes(content: Mapping[str, Any]) -> bytes:
    """Give the text of a manifest: `content`, and the digest of its text."""
    return _text({**content, _SEAL: digest_of(_text(content))})


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises
    ------
    InputError
        if there is none, or it cannot be understood.

    """
    file = folder / MANIFEST_FILE
    raw = _read(folder, file)
    try:
        content = json.loads(raw)
        found = content["output"]
        if content["format"] != FORMAT:
            raise _refusal(file, f"its format is {content['format']}, this version reads {FORMAT}")
        sealed = content.pop(_SEAL, None) == digest_of(_text(content))
        return Manifest(
            files={_name(n): _part(p["size"], p["blake3"]) for n, p in found["files"].items()},
            shards={_name(n): _part(p["size"], p["header"]) for n, p in found["shards"].items()},
            tensors={n: _tensor(p, found["shards"]) for n, p in found["tensors"].items()},
            is_sealed=sealed and raw == manifest_bytes(content),
            content=content,
            results=_results(content.get("results")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"not a manifest that can be read: {error or type(error).__name__}"
        raise _refusal(file, why) from error


def _read(folder: Path, file: Path) -> bytes:
    if not folder.is_dir():
        raise InputError(Problem(str(folder), "no such folder"))
    if file.is_symlink() or not file.is_file():
        what = f"no manifest: {MANIFEST_FILE} is missing"
        raise InputError(Problem(str(folder), what, "only what mergepipe wrote can be verified"))
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise _refusal(file, "too large for a manifest")
        return file.read_bytes()
    except OSError as error:
        raise _refusal(file, f"cannot be read: {error.strerror}") from error


def _refusal(file: Path, why: str) -> InputError:
    return InputError(Problem(str(file), why))


def _name(name: str) -> str:
    """Refuse a name that leads out of the folder, or says the same in other words."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or "\0" in name or name == ".":
        raise ValueError(f"the name {name!r} leads outside")
    return name


def _results(found: Any) -> Part | None:
    return None if found is None else _part(found["size"], found["blake3"])


def _part(size: Any, digest: Any) -> Part:
    if type(size) is not int or size < 0:
        raise ValueError(f"{size!r} is no size")
    return Part(size, _checked(digest))


def _tensor(entry: Mapping[str, Any], shards: Mapping[str, Any]) -> tuple[str, str]:
    if entry["shard"] not in shards:
        raise ValueError(f"the shard {entry['shard']!r} is not listed")
    return entry["shard"], _checked(entry["blake3"])


def _checked(digest: Any) -> str:
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is no digest")
    return digest
