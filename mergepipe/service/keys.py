"""Who may ask: keys, of which the service knows only digests.

A key has 256 random bits, so that a plain SHA-256 of it cannot be undone. The keys file has a line
for each: a name, and the digest.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from mergepipe.errors import InputError, Problem, Problems
from mergepipe.write import disk_faults

__all__ = ["LOCAL", "add_key", "holder_of", "read_keys"]

LOCAL = "local"  # who asks where there are no keys
_LINE = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})\s+sha256:(?P<digest>[0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def read_keys(file: Path) -> dict[str, str]:
    """Read a keys file: name -> digest; `#` begins a comment.

    Raises
    ------
    InputError
        naming lines that are wrong, never showing them.

    """
    problems, found = Problems(), {}
    with disk_faults(file):
        text = file.read_text("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].strip()
        match = _LINE.fullmatch(said)
        if match:
            found[match["name"]] = match["digest"]
        elif said:
            fix = "`mergepipe serve --new-key NAME` writes them"
            problems.add(f"{file}:{number}", "is no line `NAME sha256:DIGEST`", fix)
    problems.raise_any()
    return found


def add_key(file: Path, name: str) -> str:
    """Write a new key's digest to the keys file, which nobody else can read; give the key.

    Raises
    ------
    InputError
        if the name is none, or there is a key of that name.

    """
    if not _NAME.fullmatch(name):
        raise InputError(Problem("--new-key", "a name has letters, digits, '_', '.' and '-' only"))
    if file.exists() and name in read_keys(file):
        fix = "delete its line first, which ends the old key"
        raise InputError(Problem(str(file), f"there is a key named '{name}' already", fix))
    key = f"sk-{secrets.token_urlsafe(32)}"
    with disk_faults(file):
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as stream:
            stream.write(f"{name} sha256:{_digest(key)}\n")
    return key


def holder_of(authorization: str, keys: Mapping[str, str]) -> str | None:
    """Give the name of the key in an Authorization header; takes as long whichever it is."""
    scheme, _, key = authorization.partition(" ")
    digest, found = _digest(key.strip()), None
    for name, known in keys.items():
        if hmac.compare_digest(digest, known):
            found = name
    return found if scheme.lower() == "bearer" else None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
