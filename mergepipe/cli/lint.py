"""`mergepipe lint`: what is wrong in a recipe, or surprising in a configuration of mergekit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergepipe.cli.options import Compat, Json, Plugin

__all__ = ["lint"]


def lint(
    file: Annotated[Path, typer.Argument(help="A recipe, or a configuration of mergekit.")],
    plugin: Plugin = None,
    compat: Compat = None,
    *,
    json: Json = False,
) -> None:
    """Say what is wrong in a recipe, or surprising in a configuration of mergekit."""
    import json as as_json

    from mergepipe import pipeline
    from mergepipe.errors import Problems

    problems = Problems()
    pipeline.check_file(file, problems, plugins=plugin or (), compat=compat)
    if json:
        found = [{"where": p.where, "what": p.what, "fix": p.fix} for p in problems.found]
        print(as_json.dumps({"warnings": list(problems.warnings), "errors": found}))  # noqa: T201
    else:
        for warning in problems.warnings:
            print(warning)  # noqa: T201
    problems.raise_any()
