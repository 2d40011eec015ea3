"""`mergepipe publish`: put a checkpoint where others find it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergepipe.cli.options import Json, Threads
from mergepipe.cli.signals import stoppable

__all__ = ["publish"]


def publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint that `run` wrote.")],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="TARGET",
            help="./folder, hf:org/name@branch, s3://bucket/prefix, oci://host/name:tag, "
            "gguf:file.gguf?type=q8_0. Repeatable.",
        ),
    ],
    branch: Annotated[
        str | None, typer.Option("--branch", help="hf: the branch, made if it is not there.")
    ] = None,
    threads: Threads = None,
    *,
    public: Annotated[
        bool, typer.Option("--public", help="hf: a new repository that everybody sees.")
    ] = False,
    pr: Annotated[
        bool, typer.Option("--pr", help="hf: a pull request in place of a commit.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another model that is there.")
    ] = False,
    allow_paths: Annotated[
        bool,
        typer.Option("--allow-paths", help="Publish files that name folders of someone's home."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what is otherwise only warned about.")
    ] = False,
    no_card: Annotated[
        bool, typer.Option("--no-card", help="Write no model card where there is none.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent and replaced, and stop.")
    ] = False,
    json: Json = False,
) -> None:
    """Verify a checkpoint and send it, going on where an upload that was cut off stopped."""
    import os

    from mergepipe import pipeline
    from mergepipe.cli import progress, published
    from mergepipe.cli.console import print_warnings
    from mergepipe.manifest import CARD_FILE
    from mergepipe.publish import Options

    with stoppable():
        if strict:
            pipeline.card_of(folder, strict=True)  # where licences conflict, nothing is sent
        if not (no_card or dry_run or (folder / CARD_FILE).exists()):
            print_warnings(pipeline.write_card(folder, strict=strict))
        done = pipeline.publish(
            folder,
            to,
            Options(overwrite=overwrite, public=public, branch=branch, pr=pr),
            environment=os.environ,
            tell=progress.tell,
            threads=threads or os.cpu_count() or 1,
            strict=strict,
            allow_paths=allow_paths,
            dry_run=dry_run,
        )
    published.show(done, json=json, dry_run=dry_run)
