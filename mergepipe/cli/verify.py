"""`mergepipe verify`: hold a checkpoint against its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergepipe.cli.options import Json, Threads

__all__ = ["verify"]


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint that `run` wrote.")],
    threads: Threads = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="PUB", help="Check the signature too: a public key, PEM."),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Read a checkpoint again and name every byte range that is not what was written."""
    import os

    from mergepipe.cli import verdict
    from mergepipe.errors import DifferenceError

    workers = threads or os.cpu_count() or 1
    if key is None:
        from mergepipe.verify import verify as hold_against_manifest

        found = hold_against_manifest(folder, threads=workers)
    else:
        from mergepipe.pipeline import verify_signed

        found = verify_signed(folder, key, threads=workers)
    verdict.show(folder, found, json_only=json, is_signed=key is not None)
    if found.differences:
        raise DifferenceError(*found.differences)
