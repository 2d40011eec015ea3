"""`mergepipe evaluators`: what there is, and an evaluator's page."""

from __future__ import annotations

from typing import Annotated

import typer

from mergepipe.cli.options import Plugin

__all__ = ["evaluators"]


def evaluators(
    name: Annotated[str | None, typer.Argument(help="An evaluator, for its page.")] = None,
    plugin: Plugin = None,
) -> None:
    """List the evaluators, or show one: what it measures, its parameters."""
    from mergepipe.cli import evaluator_pages
    from mergepipe.evaluate import find_evaluator
    from mergepipe.plugins import load_plugins

    load_plugins(plugin or ())
    if name is None:
        evaluator_pages.show_table()
    else:
        evaluator_pages.show_page(find_evaluator(name))
