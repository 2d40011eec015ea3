"""Evaluators as a table and pages, from their docstrings and parameter models."""

from __future__ import annotations

import json
from typing import Any

from pydantic.errors import PydanticInvalidForJsonSchema
from rich import box
from rich.table import Table
from rich.text import Text

from mergepipe.cli.console import results
from mergepipe.errors import printable
from mergepipe.evaluate import Evaluator, evaluator_names, find_evaluator

__all__ = ["show_page", "show_table"]


def show_table() -> None:
    """Print all evaluators, a line each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("evaluator", "needs", "what it measures"):
        table.add_column(heading, overflow="fold")
    for name in evaluator_names():
        evaluator = find_evaluator(name)
        table.add_row(printable(name), _needs(evaluator), Text(printable(evaluator.summary)))
    results.print(table)


def _needs(evaluator: Evaluator) -> str:
    allowed = [] if evaluator.permission is None else [f"--allow-{evaluator.permission}"]
    return ", ".join([*sorted(evaluator.needs), *allowed])


def show_page(evaluator: Evaluator) -> None:
    """Print an evaluator's docstring and its parameters."""
    results.print(Text(printable(evaluator.name), style="bold"))
    results.print(evaluator.doc.strip(), markup=False, highlight=False, soft_wrap=True)
    table = Table(title="parameters", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("parameter", "default", "values"):
        table.add_column(heading, overflow="fold")
    for name, field in evaluator.parameters.model_fields.items():
        default = "required" if field.is_required() else _plain(field.get_default())
        table.add_row(Text(name), Text(default), Text(_values(evaluator, name)))
    if evaluator.parameters.model_fields:
        results.print(table)


def _plain(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _values(evaluator: Evaluator, name: str) -> str:
    try:
        schema = evaluator.parameters.model_json_schema()["properties"][name]
    except PydanticInvalidForJsonSchema:
        return ""
    kinds = [_kind(one) for one in schema.get("anyOf", [schema])]
    return " or ".join(kind for kind in kinds if kind != "null")


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("format") in {"path", "file-path", "regex"}:
        return {"regex": "regular expression"}.get(schema["format"], "file")
    return str(schema.get("type", ""))
