"""`mergepipe sign`: a signature over a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergepipe.cli.options import Threads

__all__ = ["sign"]


def sign(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint that `run` wrote.")],
    key: Annotated[
        Path, typer.Option("--key", metavar="KEY", help="A private key on an elliptic curve, PEM.")
    ],
    threads: Threads = None,
) -> None:
    """Verify a checkpoint and sign it; MERGEPIPE_KEY_PASSWORD is the key's, if it has one."""
    import os

    from mergepipe import pipeline
    from mergepipe.cli.console import results
    from mergepipe.manifest import SIGNATURE_FILE

    password = os.environ.get("MERGEPIPE_KEY_PASSWORD")
    covered = pipeline.sign(folder, key, password, threads=threads or os.cpu_count() or 1)
    line = f"{folder / SIGNATURE_FILE}: {len(covered)} files signed"
    results.print(line, markup=False, highlight=False, soft_wrap=True)
