"""What follows a merge and its scores: the model card, the signature, the places it goes to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from mergepipe.recipe import PublishSpec

__all__ = ["Sign", "check", "finish"]

Sign: TypeAlias = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEY", help="Sign the result with this private key, PEM."),
]


def check(spec: PublishSpec | None, key: Path | None, *, overwrite: bool) -> None:
    """Find what would stop `finish`, before hours of work.

    Raises
    ------
    InputError, EnvironmentFault
        if a target is wrong, or the key is not there.

    """
    from mergepipe import pipeline
    from mergepipe.errors import InputError, Problem
    from mergepipe.publish import Options

    if spec is not None:
        pipeline.check_targets(spec.to, Options(overwrite=overwrite))
    if key is not None and not key.is_file():
        raise InputError(Problem(f"--sign {key}", "no such file"))


def finish(folder: Path, spec: PublishSpec | None, key: Path | None, *, overwrite: bool) -> None:
    """Write the card, sign, and publish, as far as recipe and options ask for it."""
    import os

    from mergepipe import pipeline
    from mergepipe.cli import progress, published
    from mergepipe.cli.console import print_warnings
    from mergepipe.publish import Options

    if spec is not None and spec.strict:
        pipeline.card_of(folder, strict=True)  # where licences conflict, nothing is sent
    if spec is not None and spec.card:
        print_warnings(pipeline.write_card(folder, strict=spec.strict))
    if key is not None:
        pipeline.sign(folder, key, os.environ.get("MERGEPIPE_KEY_PASSWORD"))
        progress.tell(f"signed with {key}")
    if spec is not None and spec.to:
        done = pipeline.publish(
            folder,
            spec.to,
            Options(overwrite=overwrite),
            environment=os.environ,
            tell=progress.tell,
            threads=os.cpu_count() or 1,
            strict=spec.strict,
        )
        for line in published.lines(done):
            progress.tell(line)
