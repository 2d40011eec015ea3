"""Who runs: mergepipe, mergekit, and the roofline, which only moves the bytes."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from contest import Command, Contestant, beside_python, measure
from workload import MERGES, Merge, mergekit_config, recipe

MERGEPIPE = (sys.executable, "-m", "mergepipe")


@dataclass(frozen=True)
class Arena:
    """Where the models are, where outputs go, and how often everybody runs."""

    models: Path
    scratch: Path
    rounds: int
    mergekit_rounds: int  # 0: without mergekit
    options: frozenset[str]  # those of `mergepipe run`
    cold: bool = False

    @property
    def out(self) -> Path:
        return self.scratch / "out"

    @property
    def no_sync(self) -> Command:
        return ("--no-sync",) if "--no-sync" in self.options else ()


def offered(log: Path) -> frozenset[str]:
    """The options of `mergepipe run`."""
    measure((*MERGEPIPE, "run", "--help"), log, {})
    return frozenset(re.findall(r"--[a-z-]+", log.read_text()))


def is_listed(method: str) -> bool:
    command = (*MERGEPIPE, "methods", method)
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def entrant(program: str, experts: int, merge: str = "") -> str:
    """The name under which a contestant's costs are found."""
    return f"{program} | {merge} | base + {experts}"


def weights(models: Path, experts: int) -> tuple[Path, ...]:
    """The files that hold the tensors of the base and the experts."""
    labels = ("base", *(f"expert{i}" for i in range(1, experts + 1)))
    found = [sorted((models / label).glob("*.safetensors")) for label in labels]
    for label, files in zip(labels, found, strict=True):
        if not files:
            sys.exit(f"{models / label}: no model. Run synthetic.py --experts {experts} first.")
    return tuple(file for files in found for file in files)


def rooflines(arena: Arena, experts: int) -> tuple[Contestant, Contestant]:
    """Read every input and write one model: into the page cache, and to the disk."""
    files = weights(arena.models, experts)
    base = arena.models / "base"
    read = ("sh", "-c", 'cat "$@" > /dev/null', "sh", *map(str, files))
    copy = ("cp", "-r", "--reflink=never", str(base), str(arena.out))
    sync = ("sync", *(str(arena.out / file.name) for file in files if file.parent == base))
    return (
        _contestant(arena, entrant("roofline", experts), experts, (read, copy)),
        _contestant(arena, entrant("roofline to disk", experts), experts, (read, copy, sync)),
    )


def by_mergepipe(
    arena: Arena, key: str, experts: int, name: str, flags: Command = ()
) -> Contestant:
    """One merge by `mergepipe run`, whose recipe is checked before any clock starts."""
    path = arena.scratch / f"{_file_name(key)}-{experts}.yaml"
    path.write_text(recipe(MERGES[key], arena.models, experts))
    measure((*MERGEPIPE, "plan", str(path)), arena.scratch / "log.txt", {})
    command = (*MERGEPIPE, "run", str(path), *flags)
    return _contestant(arena, entrant(name, experts, key), experts, (command,))


def by_mergekit(arena: Arena, key: str, experts: int) -> Contestant:
    path = arena.scratch / f"{_file_name(key)}-{experts}.mergekit.yml"
    path.write_text(mergekit_config(MERGES[key], arena.models, experts))
    options = ("--no-copy-tokenizer", "--no-write-model-card")
    command = (beside_python("mergekit-yaml"), str(path), str(arena.out), *options)
    return Contestant(
        entrant("mergekit", experts, key),
        (command,),
        arena.mergekit_rounds,
        warm_ups=0,
        remove=(arena.out,),
        uncache=weights(arena.models, experts) if arena.cold else (),
    )


def compared(merge: Merge, arena: Arena) -> bool:
    """Whether mergekit can do it, and is asked to."""
    return merge.in_mergekit and arena.mergekit_rounds > 0


def _contestant(arena: Arena, name: str, experts: int, commands: tuple[Command, ...]) -> Contestant:
    return Contestant(
        name,
        commands,
        arena.rounds,
        remove=(arena.out,),
        uncache=weights(arena.models, experts) if arena.cold else (),
    )


def _file_name(key: str) -> str:
    return re.sub(r"\W+", "-", key)
