"""The wheel holds what a user needs, and works without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=environment.pop("cwd", ROOT),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_evaluators_and_recipes_inside_the_package(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert "mergepipe/_evaluators/bits_per_byte.py" in names
    assert "mergepipe/_recipes/quickstart/recipe.yaml" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mergepipe"}


def test_the_wheel_runs_alone(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    python("-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel))
    alone = {"PYTHONPATH": str(site), "cwd": str(tmp_path)}
    assert python("-m", "mergepipe", "--version", **alone).startswith("mergepipe ")
    code = "import mergepipe.evaluate as e; print(e.__file__, *e.evaluator_names())"
    where, *names = python("-c", code, **alone).split()
    assert where.startswith(str(site))
    shipped = Path(__file__).parent.parent / "evaluators"
    assert names == sorted(file.stem for file in shipped.glob("*.py"))
