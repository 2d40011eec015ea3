"""A recipe over tiny models, what the command line says of it, and how a refusal is judged."""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoints import llama

from mergepipe.cli import main

HEALTHY = """\
mergepipe: 1
models:
  base: ./base
  expert_a: ./expert_a
  expert_b: ./expert_b
merge:
  method: linear
  models:
    expert_a: {weight: 0.5}
    expert_b: {weight: 0.25}
output: {path: ./merged}
"""
MODELS = ("base", "expert_a", "expert_b")
HUB_TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
API_KEY = "sk-proj-abcdefghijklmnopqrstuvwxyz012345"


def write_models(folder: Path) -> Path:
    """Write the three models that `HEALTHY` names."""
    for seed, name in enumerate(MODELS):
        llama(folder / name, seed=seed)
    return folder


def replaced(old: str, new: str) -> str:
    """The healthy recipe with `old`, which must be there, as `new`."""
    assert old in HEALTHY
    return HEALTHY.replace(old, new)


def added(*lines: str) -> str:
    """The healthy recipe with more lines at its end; they start at line 12."""
    return HEALTHY + "\n".join(lines) + "\n"


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Said:
    """Run `mergepipe` in this process."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mergepipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return Said(stop.value.code, out, err)


def assert_clean(text: str) -> None:
    """Nothing that steers a terminal, no credential, no traceback."""
    hidden = {char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Cs"}} - {"\n"}
    assert not hidden
    assert "Traceback" not in text
    assert HUB_TOKEN not in text
    assert API_KEY not in text
