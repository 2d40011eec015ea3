"""What is measured, and the table of each: methods, scaling, memory, the first run."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from contest import Contestant, Cost, beside_python, measure, round_robin
from entrants import (
    MERGEPIPE,
    Arena,
    by_mergekit,
    by_mergepipe,
    compared,
    entrant,
    is_listed,
    rooflines,
    weights,
)
from synthetic import SIZES, tensors
from workload import MERGES

Costs = Mapping[str, tuple[Cost, ...]]
QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart" / "recipe.yaml"
# Also timed until their bytes are on the disk, and beside mergekit with any number of experts.
SYNCED = ("linear", "ties")
SCALED = LIMITED = ("linear", "ties")
LIMIT = "512MiB"


@dataclass(frozen=True)
class Part:
    title: str
    table: str
    notes: tuple[str, ...]
    costs: Costs


def methods(arena: Arena, keys: Sequence[str], experts: Sequence[int]) -> Part:
    """Each method beside the roofline of its inputs and beside mergekit."""
    listed = [key for key in keys if is_listed(MERGES[key].method)]
    rows = [(1, key) for key in listed if MERGES[key].one_expert]
    rows += [(n, key) for n in experts for key in listed if not MERGES[key].one_expert]
    if arena.mergekit_rounds:  # its libraries into the page cache, where ours are
        measure((beside_python("mergekit-yaml"), "--help"), arena.scratch / "log.txt", {})
    costs = round_robin(_entries(arena, rows), arena.scratch / "log.txt")
    body = []
    for n in dict.fromkeys(n for n, _ in rows):
        body += [_row(costs, n, "", "roofline")]
        body += [_row(costs, n, key, "mergepipe") for m, key in rows if m == n]
    head = ["inputs", "merge", "time", "CPU", "memory", "÷ roofline", "to disk, ÷ roofline"]
    head += ["mergekit's time", "CPU", "memory", "÷ mergepipe's"]
    peers = f"mergekit: {arena.mergekit_rounds}" if arena.mergekit_rounds else "mergekit left out"
    missing = [key for key in keys if key not in listed]
    notes = [
        f"Medians; least and most in brackets. Rounds: {arena.rounds}; {peers}.",
        "Roofline: `cat` of the inputs and `cp` of one model; to disk: and `sync` of the copy.",
        *_sync_note(arena),
        *([f"Not in this version: {', '.join(missing)}."] if missing else []),
    ]
    title = "Methods, inputs not in the page cache" if arena.cold else "Methods"
    return Part(title, markdown(head, body, words=2), tuple(notes), costs)


def _entries(arena: Arena, rows: Sequence[tuple[int, str]]) -> list[Contestant]:
    entries: list[Contestant] = []
    for n in dict.fromkeys(n for n, _ in rows):
        entries += rooflines(arena, n)
    least = min((n for n, key in rows if not MERGES[key].one_expert), default=1)
    for n, key in rows:
        entries.append(by_mergepipe(arena, key, n, "mergepipe", arena.no_sync))
        if key in SYNCED and arena.no_sync:
            entries.append(by_mergepipe(arena, key, n, "mergepipe to disk"))
        if compared(MERGES[key], arena) and (n <= least or key in SYNCED):
            entries.append(by_mergekit(arena, key, n))
    return entries


def _row(costs: Costs, experts: int, key: str, program: str) -> list[str]:
    ours = costs[entrant(program, experts, key)]
    synced = costs.get(entrant(f"{program} to disk", experts, key))
    theirs = costs.get(entrant("mergekit", experts, key))
    roofline, to_disk = (costs[entrant(name, experts)] for name in ("roofline", "roofline to disk"))
    return [
        f"base + {experts}",
        key or program,
        *three(ours),
        ratio(ours, roofline),
        f"{time(synced)}, {ratio(synced, to_disk)}" if synced else "",
        *(three(theirs) if theirs else ("", "", "")),
        ratio(theirs, ours) if theirs else "",
    ]


def scaling(arena: Arena, sizes: Sequence[str], *, keep: bool) -> Part:
    """Time per byte for models of several sizes, base + 2."""
    check_disk(arena.models, sizes, keep=keep)
    body, costs = [], {}
    for size in sizes:
        here = dataclasses.replace(arena, models=arena.models / size)
        with present(here.models, size, keep=keep):
            taken = round_robin(_scaling_entries(here), arena.scratch / "log.txt")
            moved = sum(file.stat().st_size for file in weights(here.models, 2)) * 4 // 3
        names = [("roofline", ""), *(("mergepipe", key) for key in SCALED)]
        body += [_scaling_row(size, moved, taken, *name) for name in names]
        costs |= {f"{size} | {name}": values for name, values in taken.items()}
    head = ["size", "merge", "read and written", "time", "per GB", "÷ roofline", "memory"]
    notes = (
        f"Base + 2 experts; medians. Rounds: {arena.rounds}.",
        "Read and written: the inputs once, and the result.",
        *_sync_note(arena),
    )
    return Part("Scaling with size", markdown(head, body, words=2), notes, costs)


def _scaling_entries(arena: Arena) -> list[Contestant]:
    in_cache, _ = rooflines(arena, 2)
    return [in_cache, *(by_mergepipe(arena, key, 2, "mergepipe", arena.no_sync) for key in SCALED)]


@contextmanager
def present(folder: Path, size: str, *, keep: bool) -> Iterator[None]:
    """Models of this size while it lasts: those that are there, or new ones."""
    made = not (folder / "expert2").exists()
    if made:
        synthetic = str(Path(__file__).with_name("synthetic.py"))
        command = [sys.executable, synthetic, str(folder), "--size", size, "--experts", "2"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    try:
        yield
    finally:
        if made and not keep:
            shutil.rmtree(folder)


def _scaling_row(size: str, moved: int, costs: Costs, program: str, key: str) -> list[str]:
    ours = costs[entrant(program, 2, key)]
    return [
        size,
        key or program,
        f"{moved / 1e9:.2f} GB",
        time(ours),
        f"{seconds(ours) / (moved / 1e9):.2f} s",
        ratio(ours, costs[entrant("roofline", 2)]),
        peak(ours),
    ]


def model_bytes(size: str) -> int:
    """Of one model of `synthetic.py` in bf16."""
    return sum(2 * int(np.prod(extent)) for _, extent in tensors(SIZES[size]))


def check_disk(folder: Path, sizes: Sequence[str], *, keep: bool) -> None:
    """Leave before anything is written where it would not fit: three models and the result."""
    missing = [size for size in sizes if not (folder / size / "expert2").exists()]
    needs = [4 * model_bytes(size) for size in missing]
    needed = sum(needs) if keep else max(needs, default=0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        sys.exit(f"{folder}: {needed / 1e9:.0f} GB needed, {free / 1e9:.0f} GB free")


def memory(arena: Arena, experts: int) -> Part:
    """Peak memory with a limit and without."""
    limits = {"none": ()}
    notes = [
        f"Base + {experts} experts; medians. Rounds: {arena.rounds}.",
        "Memory is the kernel's peak resident size.",
    ]
    if "--max-memory" in arena.options:
        limits[LIMIT] = ("--max-memory", LIMIT)
    else:
        notes.append("`mergepipe run` has no `--max-memory` in this version.")
    names = [(key, limit) for key in LIMITED for limit in limits]
    entries = [
        by_mergepipe(arena, key, experts, limit, (*arena.no_sync, *limits[limit]))
        for key, limit in names
    ]
    costs = round_robin(entries, arena.scratch / "log.txt")
    body = [[key, limit, *three(costs[entrant(limit, experts, key)])] for key, limit in names]
    head = ["merge", "`--max-memory`", "time", "CPU", "memory"]
    return Part("Memory under a limit", markdown(head, body, words=2), tuple(notes), costs)


def first_run(arena: Arena) -> Part:
    """The quickstart with an empty cache of compiled kernels, and with a full one."""
    entries = []
    for name in ("empty", "filled"):
        cache = arena.scratch / f"numba-{name}"
        command = (*MERGEPIPE, "run", str(QUICKSTART), "--out", str(arena.out), "--no-cache")
        removed = (arena.out, cache) if name == "empty" else (arena.out,)
        environment = {"NUMBA_CACHE_DIR": str(cache)}
        entries.append(
            Contestant(name, (command,), arena.rounds, remove=removed, environment=environment)
        )
    costs = round_robin(entries, arena.scratch / "log.txt")
    extra = seconds(costs["empty"]) - seconds(costs["filled"])
    head = ["numba's cache", "time", "CPU", "memory"]
    body = [[name, *three(taken)] for name, taken in costs.items()]
    notes = (
        f"`recipes/quickstart`, scores included; medians. Rounds: {arena.rounds}.",
        f"A first run takes {extra:.1f} s longer.",
    )
    return Part("The first run", markdown(head, body, words=1), notes, costs)


def _sync_note(arena: Arena) -> tuple[str, ...]:
    if arena.no_sync:
        return ("mergepipe runs with `--no-sync`, in the column `to disk` without.",)
    return ("`mergepipe run` has no `--no-sync` in this version.",)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """A table whose first columns are words, the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def seconds(costs: Sequence[Cost]) -> float:
    return median(cost.seconds for cost in costs)


def time(costs: Sequence[Cost]) -> str:
    """`3.1 s (2.9–3.4)`."""
    taken = [cost.seconds for cost in costs]
    digits = 2 if seconds(costs) < 10 else 1
    spread = f" ({min(taken):.{digits}f}–{max(taken):.{digits}f})" if len(taken) > 1 else ""
    return f"{seconds(costs):.{digits}f} s{spread}"


def peak(costs: Sequence[Cost]) -> str:
    return f"{median(cost.peak_bytes for cost in costs) / 1e9:.2f} GB"


def three(costs: Sequence[Cost]) -> tuple[str, str, str]:
    """Time, CPU seconds, memory."""
    return time(costs), f"{median(cost.cpu_seconds for cost in costs):.1f} s", peak(costs)


def ratio(a: Sequence[Cost], b: Sequence[Cost]) -> str:
    return f"{seconds(a) / seconds(b):.1f}×"
