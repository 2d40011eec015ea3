"""The layers of the package: imports point down, and cheap things stay cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mergepipe"

# From the ground up. A module may import from the layers below its own, and from its own package.
LAYERS = (
    ("errors",),
    ("kernels", "digest"),
    ("method", "checkpoint", "model", "manifest"),
    ("delta", "trim", "quantile", "tokenizer", "evaluate", "verify"),
    ("dropout", "widen", "gram", "spectral"),
    ("magprune", "rescale", "aligned"),
    ("breadcrumbs", "transplant"),
    ("methods", "transplants", "plugins", "post_steps", "recipe"),
    ("dialect", "plan"),
    ("execute", "moe"),
    ("write",),
    ("inspect", "lora"),
    ("search",),
    ("report", "card", "signing", "gguf"),
    ("publish",),
    ("pipeline",),
    ("service",),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part_of(path: Path) -> str:
    """The module or package directly below `mergepipe` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The parts of mergepipe that a file imports, early or late."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "mergepipe":
                names = [f"mergepipe.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("mergepipe.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_there_are_files_and_each_has_a_layer():
    assert len(FILES) > 30
    assert {part_of(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = part_of(path)
    above = {name for name in imports(path) - {own} if LEVEL[name] >= LEVEL[own]}
    assert not above


def test_only_the_pipeline_knows_every_stage():
    stages = {"plan", "execute", "write", "evaluate"}
    known: dict[str, set[str]] = {}
    for path in FILES:
        known.setdefault(part_of(path), set()).update(imports(path))
    assert [part for part, names in known.items() if stages <= names] == ["pipeline"]


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import mergepipe", "import mergepipe.cli"])
def test_imports_load_neither_torch_nor_transformers(statement):
    loaded = modules_after(statement)
    assert "mergepipe" in loaded
    assert not loaded & {"torch", "transformers", "numba", "pydantic"}


def test_no_method_is_registered_anywhere_but_in_its_own_file():
    names = {path.stem for path in (PACKAGE / "methods").glob("[a-z]*.py")}
    assert len(names) >= 7
    # How vectors are combined has the names of methods too; the dialect says mergekit's names.
    words_of_their_own = {"linear", "ties"}
    places = {"methods", "dialect", "inspect"}
    elsewhere = [path for path in FILES if not places & set(path.parts)]
    for path in elsewhere:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not (words & names - words_of_their_own), path
