"""Checkpoints signed, and held against manifest and signature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mergepipe import signing
from mergepipe.errors import DifferenceError
from mergepipe.verify import Verdict, verify

__all__ = ["sign", "verify_signed"]


def sign(
    folder: Path, key: Path, password: str | None = None, *, threads: int = 1
) -> tuple[str, ...]:
    """Verify a checkpoint, sign it with a private key, and give the names of what is covered.

    Raises
    ------
    InputError, EnvironmentFault
        as `mergepipe.signing.sign`.
    DifferenceError
        if the files are not what the manifest says: nobody should sign them.

    """
    found = verify(folder, threads=threads)
    if found.differences:
        raise DifferenceError(*found.differences)
    return signing.sign(folder, key, password)


def verify_signed(folder: Path, key: Path, *, threads: int = 1) -> Verdict:
    """Read a checkpoint again, and give its differences from its manifest and its signature.

    Raises
    ------
    InputError, EnvironmentFault
        as `mergepipe.signing.check_signature`.

    """
    signed = signing.check_signature(folder, key)
    found = verify(folder, threads=threads)
    named = {one.where for one in found.differences}
    more = tuple(one for one in signed if one.where not in named)
    unsigned = {one.where for one in signed}
    extra = tuple(name for name in found.extra if name not in unsigned)
    return replace(found, differences=(*found.differences, *more), extra=extra)
