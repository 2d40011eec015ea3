"""The documentation as tests read it: pages, their fenced blocks, and the commands in them.

A comment before a block says what is special about it: `<!-- file: NAME -->` writes it to a file,
`<!-- fails: STATUS -->` expects that exit status, `<!-- not run: WHY -->` leaves it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("mergepipe ", "openssl ")  # what is run of a shell's lines; the others are named here
SET_UP = ("pip install ", "make ", "git clone ", "export ")
_BLOCK = re.compile(
    r"(?:^<!-- (?P<what>file|fails|not run): (?P<about>.*?) -->\n)?"
    r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_INLINE = re.compile(r"`(mergepipe [a-z][^`]*)`")


@dataclass(frozen=True)
class Block:
    """A fenced block, and what the comment before it says."""

    kind: str
    text: str
    what: str
    about: str

    @property
    def lines(self) -> list[str]:
        """What a shell is given, continued lines as one; of a console's text its prompts."""
        found = self.text.replace("\\\n", " ").splitlines()
        if self.kind == "console":
            return [line.removeprefix("$ ") for line in found if line.startswith("$ ")]
        return [line for line in found if line.strip() and not line.startswith("#")]

    @property
    def commands(self) -> list[str]:
        """The lines of a shell that tests run."""
        is_shell = self.kind in ("sh", "console")
        return [line for line in self.lines if is_shell and line.startswith(RUN)]

    @property
    def is_recipe(self) -> bool:
        """Whether it is a whole recipe."""
        return self.kind == "yaml" and bool(re.search(r"(?m)^mergepipe: 1$", self.text))

    @property
    def is_run(self) -> bool:
        """Whether there is something in it that is run or planned."""
        return self.what != "not run" and (bool(self.commands) or self.is_recipe)


def blocks(page: Path) -> list[Block]:
    """All of a page; every comment must stand before one."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(m["kind"], m["text"], m["what"] or "", m["about"] or "")
        for m in _BLOCK.finditer(text)
    ]
    assert len(re.findall(r"<!-- (?:file|fails|not run):", text)) == sum(1 for b in found if b.what)
    return found


def mentioned(page: Path) -> Iterator[str]:
    """Every command of mergepipe on a page, wherever it stands."""
    for block in blocks(page):
        lines = block.text.replace("\\\n", " ").splitlines()
        yield from (line.removeprefix("$ ") for line in lines)
    yield from _INLINE.findall(re.sub(r"\s+", " ", page.read_text(encoding="utf-8")))
    yield from re.findall(r"(?m)^    (mergepipe .*)$", page.read_text(encoding="utf-8"))
