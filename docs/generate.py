"""Write the reference pages from the code: `python docs/generate.py [--check]`.

`methods.md` and a page for each method come from the methods' docstrings and parameter models,
`recipe-fields.md` from the schema of recipes. With `--check` nothing is written: exit status 1 if
a page is stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fields import fields_page

from mergepipe.method import (
    Method,
    Target,
    load_method,
    load_post_step,
    method_names,
    post_step_names,
)

DOCS = Path(__file__).parent


def methods_page() -> str:
    """All methods in a table."""
    lines = [
        "# Merge methods",
        "",
        "Generated from `mergepipe/methods/`; `mergepipe methods NAME` prints a method's page.",
        "",
        *_HEADS,
        "| --- | --- | --- | --- | --- | --- | ---: | --- |",
    ]
    lines += [_row(load_method(name)) for name in method_names()]
    lines += ["", "Post-steps, which follow a merge (`then: [lines]`):", ""]
    lines += [*_HEADS[-1:], "| --- | --- | --- | --- | --- | --- | ---: | --- |"]
    lines += [_row(load_post_step(name)) for name in post_step_names()]
    return "\n".join(lines) + "\n"


def method_page(method: Method[Any, Any]) -> str:
    """What a method does, and its parameters."""
    text = re.sub(r"(?<!<)https?://[^\s;,)]+[^\s;,).]", r"<\g<0>>", method.doc.strip())
    text = re.sub(r"(?m)^(>>> (?:.+\n?)+)", r"```python\n\1\n```\n", text + "\n")
    lines = [f"# {method.name}", "", re.sub(r"\n+```\n", "\n```\n", text), *_parameters(method)]
    return "\n".join(lines).rstrip() + "\n"


_HEADS = (
    "None needs data: weights are enough. **Reads** is how often the inputs are swept, at most;",
    "**kernel** whether a fused one makes it on the CPU (else torch does), and what blocks must",
    "hold; **time** is relative to `linear`, on a small model in the page cache (three experts,",
    "`benchmarks/method_times.py`); **tested against** is what results are held against, beside",
    "laws that all methods keep and the definition that a kernel must equal bit for bit.",
    "",
    "| method | base | models | reads | kernel | source | time | tested against |",
)
_MATRIX = Target("layer.weight", (8, 8), "other")
_TIMES: dict[str, float] = json.loads((DOCS / "method_times.json").read_text())[
    "relative_to_linear"
]


def _row(method: Method[Any, Any]) -> str:
    fewest, most = method.models
    count = str(fewest) if fewest == most else f"{fewest} or more"
    if most is not None and fewest != most:
        count = f"{fewest} to {most}"
    base = "yes" if method.needs_base else "optional" if method.optional_base else "no"
    shared = method.shared()
    kernel = "yes" if method.kernel_for(shared) is not None else "torch"
    cut = method.cut(shared, _MATRIX)
    whole = {"anywhere": "", "rows": ", whole rows", "matrices": ", whole matrices"}
    kernel += whole.get(str(cut), "")
    time = f"{_TIMES[method.name]:g}×" if method.name in _TIMES else ""
    cells = (
        f"[{method.name}](methods/{method.name}.md)",
        base,
        count,
        f"{1 + method.sweeps(shared)}×",
        kernel,
        _source(method),
        time,
        method.against,
    )
    return f"| {' | '.join(cells)} |"


def _source(method: Method[Any, Any]) -> str:
    """Give the authors and the year of a method's first source, as a link."""
    paragraph = " ".join(method.doc.strip().split("\n\n")[1].split())
    link = re.search(r"https?://[^\s;,)]+", paragraph)
    year = re.search(r"(?:19|20)\d\d(?=[.;,)])", paragraph)
    if link is None or year is None:
        return ""
    before = paragraph[: paragraph.index('"')] if '"' in paragraph else ""
    who = before.strip(" ,").replace("The mask is that of ", "")
    return f"[{who} {year[0]}]({link[0].rstrip('.')})"


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


def pages() -> dict[str, str]:
    """Give all pages by their file."""
    methods = [load_method(name) for name in method_names()]
    posts = [load_post_step(name) for name in post_step_names()]
    return {
        "methods.md": methods_page(),
        "recipe-fields.md": fields_page(),
        **{f"methods/{one.name}.md": method_page(one) for one in (*methods, *posts)},
    }


def main() -> int:
    """Write the pages, or say which are stale."""
    made, stale = pages(), []
    there = {str(file.relative_to(DOCS)) for file in (DOCS / "methods").glob("*.md")}
    for name in sorted(there - made.keys()):
        stale.append(name)
        if "--check" not in sys.argv:
            (DOCS / name).unlink()
    for name, text in made.items():
        file = DOCS / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                file.parent.mkdir(exist_ok=True)
                file.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}; run python docs/generate.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
