"""`mergepipe methods`: what there is, and a method's page."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["methods"]


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, for its page.")] = None,
) -> None:
    """List the merge methods, or show one: formula, paper, parameters."""
    from mergepipe.cli import method_pages
    from mergepipe.method import load_method

    if name is None:
        method_pages.show_table()
    else:
        method_pages.show_page(load_method(name))
