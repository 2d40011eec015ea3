"""Merge methods as tables and pages, from their docstrings and parameter models."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mergepipe.cli.console import results
from mergepipe.method import (
    Method,
    Parameters,
    load_method,
    load_post_step,
    method_names,
    post_step_names,
)

__all__ = ["show_page", "show_table"]


def show_table() -> None:
    """Print all methods, a line each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("method", "base", "models", "what it does"):
        table.add_column(heading, overflow="fold")
    for name in method_names():
        method = load_method(name)
        base = "yes" if method.needs_base else "no"
        table.add_row(name, base, _models(method), Text(method.summary))
    for name in post_step_names():
        step = load_post_step(name)
        table.add_row(name, "after a merge", "", Text(step.summary))
    results.print(table)


def _models(method: Method[Any, Any]) -> str:
    fewest, most = method.models
    return str(fewest) if fewest == most else f"{fewest} or more"


def show_page(method: Method[Any, Any]) -> None:
    """Print a method's docstring and its parameters."""
    results.print(Text(method.name, style="bold"))
    results.print(method.doc.strip(), markup=False, highlight=False, soft_wrap=True)
    for parameters, title in ((method.each, "per model"), (method.shared, "for the merge")):
        if parameters.model_fields:
            results.print(_parameters(parameters, title))


def _parameters(parameters: type[Parameters], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("parameter", "default", "values", "meaning"):
        table.add_column(heading, overflow="fold")
    for name, field in parameters.model_json_schema()["properties"].items():
        table.add_row(
            name,
            str(field.get("default", "required")).lower(),
            Text(_values(field)),
            Text(field["description"]),
        )
    return table


def _values(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(field["enum"])
    low, high = field.get("minimum"), field.get("maximum")
    kind = field.get("type") or " or ".join(one["type"] for one in field["anyOf"])
    return kind if low is None and high is None else f"{kind}, {low} to {high}"
