"""Write the reference pages from the code: `python docs/generate.py [--check]`.

`methods.md` comes from the methods' docstrings and parameter models. With `--check` nothing is
written: exit status 1 if a page is stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergepipe.method import Method, load_method, method_names

DOCS = Path(__file__).parent


def methods_page() -> str:
    """All methods: a table, then a section each."""
    lines = [
        "# Merge methods",
        "",
        "Generated from `mergepipe/methods/`; `mergepipe methods NAME` prints the same.",
        "",
        "| method | base | models | reads | what it does |",
        "| --- | --- | --- | --- | --- |",
    ]
    methods = [load_method(name) for name in method_names()]
    lines += [_row(method) for method in methods]
    for method in methods:
        lines += ["", f"## {method.name}", "", "```text", method.doc.strip(), "```", ""]
        lines += _parameters(method)
    return "\n".join(lines) + "\n"


def _row(method: Method[Any, Any]) -> str:
    fewest, most = method.models
    count = str(fewest) if fewest == most else f"{fewest} or more"
    reads = 1 + method.sweeps(method.shared())
    base = "yes" if method.needs_base else "no"
    return f"| [{method.name}](#{method.name}) | {base} | {count} | {reads}× | {method.summary} |"


def _parameters(method: Method[Any, Any]) -> Iterator[str]:
    rows = [
        (f"`{name}`", kind, f"`{json.dumps(field.get('default'))}`", field["description"])
        for kind, parameters in (("per model", method.each), ("merge", method.shared))
        for name, field in parameters.model_json_schema().get("properties", {}).items()
    ]
    if rows:
        yield "| parameter | for | default | meaning |"
        yield "| --- | --- | --- | --- |"
        yield from (f"| {' | '.join(row)} |" for row in rows)


PAGES = {
    "methods.md": methods_page,
}


def main() -> int:
    """Write the pages, or say which are stale."""
    stale = []
    for name, page in PAGES.items():
        file, text = DOCS / name, page()
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                file.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}; run python docs/generate.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
