"""What people and monitors read: the routes as a page without scripts, and counts as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["documentation", "metrics"]

_STYLE = "body{font:16px sans-serif;max-width:50em;margin:2em auto}code{background:#eee}"


def documentation(schema: Mapping[str, Any]) -> str:
    """Give a page of the routes and the fields of their bodies."""
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            f"<title>{escape(schema['info']['title'])}</title><style>{_STYLE}</style>",
            f"<h1>{escape(schema['info']['title'])}</h1>",
            f"<p>{escape(schema['info']['description'])}</p>",
            "<p>For machines: <a href=/openapi.json>openapi.json</a>.</p>",
            *_routes(schema),
            "</html>",
        ]
    )


def _routes(schema: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            yield f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
            yield f"<p>{escape(route.get('description', ''))}</p>"
            content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
            name = str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]
            fields = schema.get("components", {}).get("schemas", {}).get(name, {})
            items = (
                f"<li><code>{escape(key)}</code> {escape(str(one.get('description', '')))}</li>"
                for key, one in fields.get("properties", {}).items()
            )
            yield f"<ul>{''.join(items)}</ul>"


def metrics(
    counts: Mapping[tuple[str, int], int],
    seconds: Mapping[str, float],
    gauges: Mapping[str, int],
) -> str:
    """Give counts in Prometheus' text format."""
    lines = ["# TYPE mergepipe_requests_total counter"]
    lines += [
        f'mergepipe_requests_total{{route="{route}",status="{status}"}} {count}'
        for (route, status), count in sorted(counts.items())
    ]
    lines.append("# TYPE mergepipe_request_seconds_total counter")
    lines += [
        f'mergepipe_request_seconds_total{{route="{route}"}} {spent:.6f}'
        for route, spent in sorted(seconds.items())
    ]
    for name, value in gauges.items():
        lines += [f"# TYPE mergepipe_{name} gauge", f"mergepipe_{name} {value}"]
    return "\n".join(lines) + "\n"
