"""Markdown of what others wrote: names and texts are shown as they are, and mean nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from mergepipe.errors import printable

__all__ = ["fence", "hub_link", "is_hub_id", "table", "text"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$^@])")
_START = re.compile(r"^(\d*)([+=.)-])(?=[\s=-]|$)")  # of a list, a rule, a heading
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SCHEME = re.compile(r"(?i)\b(https?|ftp|www)(?=:|\.)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
_LEAST_TICKS = 3


def text(value: object, limit: int = 300) -> str:
    r"""Give a text that Markdown and HTML show letter by letter, on one line.

    >>> text("a_b <script> [x](javascript:y)")
    'a\\_b &lt;script&gt; \\[x\\](javascript:y)'
    """
    shown = " ".join(printable(value, limit).split())
    shown = re.sub("[&<>]", lambda found: _ENTITIES[found[0]], shown)
    shown = _START.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", shown))
    # Renderers make links of bare addresses; a name is none.
    return _SCHEME.sub(lambda found: f"{found[0]}&#8203;", shown)


def hub_link(name: str, commit: str | None = None) -> str:
    """Give a link to a model on the hub; the name alone where it cannot be one."""
    if not _HUB_ID.fullmatch(name):
        return text(name)
    tree = f"/tree/{quote(commit, safe='')}" if commit else ""
    return f"[{text(name)}](https://huggingface.co/{name}{tree})"


def is_hub_id(name: str) -> bool:
    """Tell whether a name can be that of a model on the hub, `org/name`."""
    return bool(_HUB_ID.fullmatch(name))


def fence(content: str, language: str = "") -> str:
    """Give a code block that its content cannot end: its fence is longer than any run in it."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    ticks = "`" * max(_LEAST_TICKS, longest + 1)
    lines = (_line(line) for line in content.rstrip("\n").split("\n"))
    return "\n".join([f"{ticks}{language}", *lines, ticks])


def _line(line: str) -> str:
    """Escape what a line of code should not hold: controls, bidirectional overrides, secrets."""
    return printable(line, 10_000)


def table(head: Sequence[str], lines: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Give a table of cells that are Markdown already; the last `numbers` columns stand right."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
