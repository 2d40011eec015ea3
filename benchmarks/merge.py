"""Time and memory of merges beside mergekit 0.1.5 and beside moving the bytes alone.

    python benchmarks/synthetic.py /tmp/bench --size 1b --experts 4
    python benchmarks/merge.py /tmp/bench --methods linear ties --json /tmp/times.json
    python benchmarks/merge.py /tmp/bench --scaling --memory --first-run --write

Without one of --scaling, --cold, --memory and --first-run it times the methods. Tables go to
standard output, what runs at the moment to standard error. `workload.py` holds the merges,
`contest.py` runs the programs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import parts
from entrants import Arena, offered
from parts import Part
from synthetic import SIZES
from workload import MERGES

RESULTS = Path(__file__).with_name("RESULTS.md")
PROGRAMS = ("mergepipe", "mergekit", "torch", "numba")


def machine() -> dict[str, str]:
    """What the times were taken on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": model[1] if model else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "Python": platform.python_version(),
        **{name: version(name) for name in PROGRAMS},
    }


def section(part: Part, command: str) -> str:
    """A heading, the command and the machine, the table, and what it leaves out."""
    facts = machine()
    where = f"{facts.pop('date')}: {facts.pop('processor')}, {facts.pop('cores')} cores, "
    where += f"{facts.pop('memory')}, " + ", ".join(f"{k} {v}" for k, v in facts.items())
    notes = "\n".join(part.notes)
    return f"## {part.title}\n\n{where}.\n`{command}`\n\n{part.table}\n\n{notes}\n"


def replace_section(text: str, name: str, body: str) -> str:
    """The document with this section in place of the one of that name, or at its end."""
    begin, end = (f"<!-- merge.py:{name} {word} -->" for word in ("begin", "end"))
    marked = f"{begin}\n{body}{end}\n"
    before, found, rest = text.partition(begin + "\n")
    if not found:
        return f"{text.rstrip()}\n\n{marked}"
    _, closed, after = rest.partition(end + "\n")
    if not closed:
        sys.exit(f"{RESULTS}: {begin} without {end}")
    return before + marked + after


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, help="models of synthetic.py; outputs go there for a while")
    add("--methods", nargs="+", choices=MERGES, default=list(MERGES))
    add("--experts", nargs="+", type=int, default=[2, 4], help="beside the base; default: 2 4")
    add("--rounds", type=int, default=5, help="after a warm-up; default: 5")
    add("--mergekit-rounds", type=int, default=1, help="without a warm-up; default: 1")
    add("--without-mergekit", action="store_true")
    add("--scaling", action="store_true", help="time per byte of models of --sizes")
    add("--sizes", nargs="+", choices=SIZES, default=["0.1b", "1b", "4b"])
    add("--keep", action="store_true", help="leave the models that --scaling made")
    add("--cold", action="store_true", help="the methods, with inputs out of the page cache")
    add("--memory", action="store_true", help="peak memory with --max-memory 512MiB")
    add("--first-run", action="store_true", help="the quickstart without compiled kernels")
    add("--json", type=Path, help="a file for every single time")
    add("--write", action="store_true", help="put the tables into RESULTS.md")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> tuple[str, ...]:
    names = ("scaling", "cold", "memory", "first_run")
    return tuple(name for name in names if getattr(options, name)) or ("methods",)


def shown(words: list[str], folder: Path) -> str:
    """The command, less what only says where things go."""
    line = " ".join("DIR" if word == str(folder) else word for word in words)
    return "python benchmarks/merge.py " + re.sub(r" --json \S+| --write", "", line)


def run_part(name: str, arena: Arena, options: argparse.Namespace) -> Part:
    if name == "scaling":
        return parts.scaling(arena, options.sizes, keep=options.keep)
    if name == "memory":
        return parts.memory(arena, max(options.experts))
    if name == "first_run":
        return parts.first_run(arena)
    cold = dataclasses.replace(arena, cold=name == "cold")
    return parts.methods(cold, options.methods, options.experts)


def main() -> None:
    options = arguments()
    command = shown(sys.argv[1:], options.folder)
    taken: dict[str, object] = {"machine": machine(), "command": command}
    folder = options.folder.resolve()
    with tempfile.TemporaryDirectory(dir=folder, prefix="merge-") as scratch:
        log = Path(scratch) / "log.txt"
        arena = Arena(
            folder,
            Path(scratch),
            options.rounds,
            0 if options.without_mergekit else options.mergekit_rounds,
            offered(log),
        )
        for name in chosen(options):
            part = run_part(name, arena, options)
            body = section(part, command)
            print(body, flush=True)
            taken[name] = {k: [dataclasses.asdict(c) for c in v] for k, v in part.costs.items()}
            if options.json:
                options.json.write_text(json.dumps(taken, indent=1))
            if options.write:
                RESULTS.write_text(replace_section(RESULTS.read_text(), name, body))


if __name__ == "__main__":
    main()
