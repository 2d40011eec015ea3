"""Transplant methods as a table and as pages, from their docstrings and parameters."""

from __future__ import annotations

import importlib
import inspect

from rich import box
from rich.table import Table
from rich.text import Text

from mergepipe.cli.console import results
from mergepipe.transplant import load_transplant, transplant_names

__all__ = ["show_page", "show_table"]


def _words(name: str) -> str:
    load_transplant(name)
    return inspect.getdoc(importlib.import_module(f"mergepipe.transplants.{name}")) or ""


def show_table() -> None:
    """Print all methods, a line each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("method", "needs", "what it does"):
        table.add_column(heading, overflow="fold")
    for name in transplant_names():
        needs = ", ".join(sorted(load_transplant(name).needs))
        table.add_row(name, needs, Text(_words(name).partition("\n")[0]))
    results.print(table)


def show_page(name: str) -> None:
    """Print a method's docstring and its parameters."""
    results.print(Text(name, style="bold"))
    results.print(_words(name).strip(), markup=False, highlight=False, soft_wrap=True)
    fields = load_transplant(name).parameters.model_fields
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("parameter", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for field, one in fields.items():
        default = "required" if one.is_required() else str(one.default).lower()
        table.add_row(field, Text(default), Text(one.description or ""))
    if fields:
        results.print(table)
