"""`mergepipe convert`: the recipe that a configuration of mergekit means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergepipe.cli.options import Compat, Plugin

__all__ = ["convert"]


def convert(
    file: Annotated[Path, typer.Argument(help="A configuration of mergekit.")],
    plugin: Plugin = None,
    compat: Compat = None,
) -> None:
    """Print the recipe that a configuration of mergekit means; warnings go to stderr."""
    import yaml

    from mergepipe import pipeline
    from mergepipe.cli.console import print_warnings
    from mergepipe.errors import InputError, Problem, Problems
    from mergepipe.plugins import load_plugins

    problems = Problems()
    load_plugins(plugin or ())
    document = pipeline.read_recipe(file, problems, compat=compat)
    if pipeline.is_mixture(document):
        what = "a mixture of experts has no form as a recipe: `mergepipe run` runs it as it is"
        raise InputError(Problem(file.name, what))
    print_warnings(problems.warnings)
    problems.raise_any()
    text = yaml.safe_dump(document.data, sort_keys=False, allow_unicode=True, width=100)
    print(text, end="")  # noqa: T201
