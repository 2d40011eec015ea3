"""`mergepipe methods`: what there is, and a method's page."""

from __future__ import annotations

from typing import Annotated

import typer

from mergepipe.cli.options import Plugin

__all__ = ["methods"]


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, for its page.")] = None,
    plugin: Plugin = None,
    *,
    transplant: Annotated[
        bool, typer.Option("--transplant", help="Ways to give a model another tokenizer.")
    ] = False,
) -> None:
    """List the merge methods, or show one: formula, paper, parameters."""
    if transplant:
        from mergepipe.cli import transplant_pages

        if name is None:
            transplant_pages.show_table()
        else:
            transplant_pages.show_page(name)
        return
    from mergepipe.cli import method_pages
    from mergepipe.method import load_method, load_post_step, post_step_names
    from mergepipe.plugins import load_plugins

    load_plugins(plugin or ())
    if name is None:
        method_pages.show_table()
    else:
        find = load_post_step if name in post_step_names() else load_method
        method_pages.show_page(find(name))
