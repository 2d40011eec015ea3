"""Every command and every recipe of the documentation is run as it stands there.

A comment before a block says what is special about it: `<!-- file: NAME -->` writes it to a file,
`<!-- fails: STATUS -->` expects that exit status, `<!-- not run: WHY -->` leaves it out. Models and
texts that pages speak of are the quickstart's, under the pages' names.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import command

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODELS = {
    "base": ("base", "a", "b"),
    "german": ("german", "french", "expert"),
    "python": ("python", "code"),
    "arithmetic": ("arithmetic", "math", "chat"),
}
TEXTS = {
    "english": ("english", "texts"),
    "german": ("german", "french"),
    "python": ("python", "data"),
    "arithmetic": ("sums",),
    "arithmetic_text": ("arithmetic_text", "math"),
}
_BLOCK = re.compile(
    r"(?:<!-- (?P<what>file|fails|not run): (?P<about>.*?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block, and what the comment before it says."""

    kind: str
    text: str
    what: str
    about: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(m["kind"], m["text"], m["what"] or "", m["about"] or "")
        for m in _BLOCK.finditer(text)
    ]
    assert len(re.findall(r"<!-- (?:file|fails|not run):", text)) == sum(1 for b in found if b.what)
    return found


def commands(block: Block) -> list[str]:
    """The commands of mergepipe in a block for a shell, with their continued lines."""
    joined = block.text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.startswith("mergepipe ")]


def is_run(block: Block) -> bool:
    recipe = block.kind == "yaml" and re.search(r"(?m)^mergepipe: 1$", block.text)
    return block.what != "not run" and bool((block.kind == "sh" and commands(block)) or recipe)


def scene(folder: Path) -> Path:
    """What pages speak of, beside each other."""
    for model, names in MODELS.items():
        for name in names:
            shutil.copytree(QUICKSTART / model, folder / name)
    (folder / "heldout").mkdir()
    for text, names in TEXTS.items():
        for name in names:
            shutil.copy(QUICKSTART / "heldout" / f"{text}.jsonl", folder / f"{name}.jsonl")
            shutil.copy(
                QUICKSTART / "heldout" / f"{text}.jsonl", folder / "heldout" / f"{name}.jsonl"
            )
    shutil.copy(QUICKSTART / "heldout" / "german.jsonl", folder / "text.txt")
    shutil.copytree(
        ROOT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder


def proof() -> list[str]:
    """The commands of the README's block that makes, shows, publishes and proves a merge."""
    found = [c for block in blocks(PAGES[0]) if block.kind == "sh" for c in [commands(block)]]
    return next(one for one in found if any("reproduce" in line for line in one))


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
        "MERGEPIPE_CACHE": str(folder / "cache"),
    }
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(map(is_run, blocks(page)))], ids=lambda page: page.name
)
def test_what_a_page_says_can_be_done_can_be_done(page: Path, tmp_path: Path):
    folder = scene(tmp_path)
    for block in blocks(page):
        if block.what == "file":
            (folder / block.about).write_text(block.text)
        if not is_run(block):
            continue
        if block.kind == "yaml":
            name = block.about if block.what == "file" else "recipe.yaml"
            (folder / name).write_text(block.text)
            if block.what != "file":
                done = run(f"mergepipe plan {name}", folder)
                assert done.returncode == 0, f"{block.text}\n{done.stderr}"
            continue
        for line in commands(block):
            done = run(line, folder)
            expected = int(block.about) if block.what == "fails" else 0
            assert done.returncode == expected, f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_readmes_five_commands_make_a_merge_that_proves_itself(tmp_path, monkeypatch, capsys):
    """As they stand there, over fewer held-out texts."""
    ignore = shutil.ignore_patterns("__pycache__")
    recipes = shutil.copytree(QUICKSTART.parent, tmp_path / "recipes", ignore=ignore)
    for texts in (recipes / "quickstart" / "heldout").iterdir():
        texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:3]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGEPIPE_CACHE", str(tmp_path / "cache"))
    said = {}
    for line in proof():
        words = shlex.split(line, comments=True)
        said[words[1]] = command(capsys, *words[1:])
        assert said[words[1]].status == 0, f"{line}\n{said[words[1]].err}"
    assert list(said) == ["run", "report", "publish", "verify", "reproduce"]
    assert "hub-folder: the same bytes: 47 tensors" in said["reproduce"].out
    there = {file.name for file in (tmp_path / "hub-folder").iterdir()}
    assert {"config.json", "mergepipe.json", "README.md", "report.html", "results.jsonl"} < there


def test_little_is_left_out():
    left = [block.about for page in PAGES for block in blocks(page) if block.what == "not run"]
    assert len(left) <= 12
    assert all(len(why) > 10 for why in left)
