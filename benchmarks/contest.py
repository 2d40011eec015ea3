"""Time, CPU seconds and peak memory of whole programs, taken in turns.

Every round runs each contestant once, so that a machine that slows down slows them all. Before a
run, and off the clock, what the last one wrote is removed and everything else is on the disk.

This file is also the program that starts a contestant. The kernel counts the memory of a process
that starts a program as that program's (ru_maxrss survives exec), so it imports little.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

Command = tuple[str, ...]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Cost:
    seconds: float
    cpu_seconds: float  # user and system, of the program and all it started
    peak_bytes: int  # the largest resident set of one process


@dataclass(frozen=True)
class Contestant:
    """Commands that follow one another: their times are added."""

    name: str
    commands: tuple[Command, ...]
    rounds: int
    warm_ups: int = 1
    remove: tuple[Path, ...] = ()
    uncache: tuple[Path, ...] = ()  # files whose pages the kernel is asked to forget
    environment: Mapping[str, str] = field(default_factory=dict)


def beside_python(program: str) -> str:
    """The program that is installed with this Python."""
    return str(Path(sys.executable).with_name(program))


def measure(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Cost:
    """Run a program to its end; its output goes to `log`, and to the terminal if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Where it is set, a program that is not installed as a wheel is compiled at every start.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    started = subprocess.run(
        [sys.executable, "-I", __file__, str(log), *command],
        env={**inherited, **OFFLINE, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        check=False,
    )
    if started.returncode:
        sys.exit(f"{' '.join(command)[:300]}\nfailed:\n{log.read_text()[-3000:]}")
    return Cost(**json.loads(started.stdout))


def round_robin(contestants: Iterable[Contestant], log: Path) -> dict[str, tuple[Cost, ...]]:
    """Each contestant's costs, round by round, without the warm-ups."""
    entered = tuple(contestants)
    costs: dict[str, list[Cost]] = {c.name: [] for c in entered}
    assert len(costs) == len(entered), "two contestants have one name"
    first = -max(c.warm_ups for c in entered)
    for turn in range(first, max(c.rounds for c in entered)):
        for contestant in entered:
            if not -contestant.warm_ups <= turn < contestant.rounds:
                continue
            cost = _run(contestant, log)
            title = "warm-up" if turn < 0 else f"round {turn + 1}"
            print(f"{title}: {contestant.name}: {cost.seconds:.2f} s", file=sys.stderr)
            if turn >= 0:
                costs[contestant.name].append(cost)
    return {name: tuple(taken) for name, taken in costs.items()}


def _run(contestant: Contestant, log: Path) -> Cost:
    _remove(contestant.remove)
    os.sync()
    for file in contestant.uncache:
        _uncache(file)
    parts = [measure(command, log, contestant.environment) for command in contestant.commands]
    _remove(contestant.remove)
    return Cost(
        sum(part.seconds for part in parts),
        sum(part.cpu_seconds for part in parts),
        max(part.peak_bytes for part in parts),
    )


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _uncache(file: Path) -> None:
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    log, *command = sys.argv[1:]
    with Path(log).open("w") as out:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
    cost = Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
    print(json.dumps(asdict(cost)))
    sys.exit(1 if status else 0)


if __name__ == "__main__":
    main()
