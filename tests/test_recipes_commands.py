"""Recipes that need a server beside them, run by the commands that stand at their top."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import ROOT

pytestmark = pytest.mark.slow

PORT = "8765"  # the default, which others may use here
_COMMANDS = re.compile(r"(?m)^#   (?P<line>.*\bmergepipe .*|export .*)$")
_WAIT = "timeout 60 bash -c 'until (exec 3<>/dev/tcp/127.0.0.1/{port}); do sleep 0.1; done'"


def script(recipe: Path, folder: Path, port: int) -> str:
    """The commands as a shell's script, which waits for what it starts to be there."""
    lines = ["set -e"]
    for found in _COMMANDS.finditer(recipe.read_text(encoding="utf-8")):
        line = re.sub(r"\s+#.*", "", found["line"]).replace("/tmp/", f"{folder}/")
        is_server = line.endswith(" &")
        lines.append(f"{line[:-2]} --port {port} &" if is_server else line)
        lines += [_WAIT.format(port=port)] if is_server else []
    return "\n".join(lines).replace(PORT, str(port))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def run(name: str, folder: Path) -> None:
    """Copy the recipes, with another port and folder, and do what one of them says."""
    ignore, port = shutil.ignore_patterns("__pycache__"), free_port()
    recipes = shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=ignore)
    recipe = recipes / "search" / name
    commands = script(recipe, folder, port)
    here = recipe.read_text(encoding="utf-8").replace("/tmp/", f"{folder}/")
    recipe.write_text(here.replace(PORT, str(port)), encoding="utf-8")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            ["bash", "-c", commands],
            cwd=folder,
            env={**os.environ, "PATH": path, "MERGEPIPE_CACHE": str(folder / "cache")},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=600)
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # the servers, which do not end
    assert status == 0, (folder / "said").read_text(encoding="utf-8")


def test_a_search_on_a_service_of_this_machine_ends_with_the_best_recipe(tmp_path):
    run("service.yaml", tmp_path)
    best = yaml.safe_load((tmp_path / "tuned.search" / "best.yaml").read_text())
    assert best["merge"]["models"].keys() == {"german", "python", "arithmetic"}


def test_a_search_by_adapters_leaves_one_and_clears_the_servers_folder(tmp_path):
    run("adapters.yaml", tmp_path)
    assert (tmp_path / "composed" / "adapter_config.json").is_file()
    assert list((tmp_path / "adapters").iterdir()) == []
