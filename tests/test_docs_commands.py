"""Every command and every recipe of the documentation is run as it stands there.

Models and texts that pages speak of are the quickstart's, under the pages' names.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import command
from pages import PAGES, README, ROOT, Block, blocks

QUICKSTART = ROOT / "recipes" / "quickstart"
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


def do(block: Block, folder: Path) -> None:
    """Run a block's commands, or plan its recipe."""
    if block.is_recipe:
        name = block.about if block.what == "file" else "recipe.yaml"
        (folder / name).write_text(block.text)
        if block.what != "file":
            done = run(f"mergepipe plan {name}", folder)
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"
    for line in block.commands:
        done = run(line, folder)
        expected = int(block.about) if block.what == "fails" else 0
        assert done.returncode == expected, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.is_run for block in blocks(page))],
    ids=lambda page: page.name,
)
def test_what_a_page_says_can_be_done_can_be_done(page: Path, tmp_path: Path):
    folder = scene(tmp_path)
    for block in blocks(page):
        if block.what == "file":
            (folder / block.about).write_text(block.text)
        if block.is_run:
            do(block, folder)


def test_the_readmes_five_commands_make_a_merge_that_proves_itself(tmp_path, monkeypatch, capsys):
    """As they stand there, over fewer held-out texts."""
    ignore = shutil.ignore_patterns("__pycache__")
    recipes = shutil.copytree(QUICKSTART.parent, tmp_path / "recipes", ignore=ignore)
    for texts in (recipes / "quickstart" / "heldout").iterdir():
        texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:3]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGEPIPE_CACHE", str(tmp_path / "cache"))
    found = [block.commands for block in blocks(README)]
    said = {}
    for line in next(one for one in found if any("reproduce" in line for line in one)):
        words = shlex.split(line, comments=True)
        said[words[1]] = command(capsys, *words[1:])
        assert said[words[1]].status == 0, f"{line}\n{said[words[1]].err}"
    assert list(said) == ["run", "report", "publish", "verify", "reproduce"]
    assert "hub-folder: the same bytes: 47 tensors" in said["reproduce"].out
    there = {file.name for file in (tmp_path / "hub-folder").iterdir()}
    assert {"config.json", "mergepipe.json", "README.md", "report.html", "results.jsonl"} < there
