"""Runs of the command line that are killed, for real, at a chosen moment.

Each is a process of its own, forked from a server that has imported everything, so that it begins
to work at once. Nothing of mergepipe is replaced; calls that touch the disk are only counted, and
the process kills itself before the k-th.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["mergepipe.cli", "warm"])
_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


@dataclass(frozen=True)
class Attempt:
    """How a run ended: negative status if by a signal; what it said; its calls to the disk."""

    status: int
    err: str
    calls: int


@dataclass(frozen=True)
class Running:
    """A run that is going on."""

    process: BaseProcess
    folder: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def end(self, seconds: float = 60) -> Attempt:
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it hangs"
        calls = self.folder / ".calls"
        count = int(calls.read_text()) if calls.exists() else -1
        return Attempt(self.process.exitcode, (self.folder / ".said").read_text(), count)


def start(
    folder: Path,
    *options: str,
    die_at: int = 0,
    by: int = signal.SIGKILL,
    pause: float = 0,
    **limits: int,
) -> Running:
    """Start `mergepipe run recipe.yaml` in `folder`; `pause` seconds before each block written."""
    words = ("run", "recipe.yaml", "--threads", "2", *options)
    process = _SERVER.Process(target=_child, args=(folder, words, (die_at, by), pause, limits))
    (folder / ".calls").unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the server finds `warm`
        process.start()
    return Running(process, folder)


def attempt(
    folder: Path, *options: str, die_at: int = 0, by: int = signal.SIGKILL, **limits: int
) -> Attempt:
    """Run it to its end, or to a signal before the `die_at`-th call that touches the disk."""
    return start(folder, *options, die_at=die_at, by=by, **limits).end()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.002)


def _child(
    folder: Path,
    words: tuple[str, ...],
    death: tuple[int, int],
    pause: float,
    limits: dict[str, int],
) -> None:
    import resource

    from mergepipe.cli import main

    os.chdir(folder)
    os.environ["COLUMNS"] = "200"
    said = os.open(".said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    sys.argv = ["mergepipe", *words]
    count = _count_calls(*death)
    _slow_down(pause)
    try:
        main()
    finally:
        (folder / ".calls").write_text(str(count[0]))


def _count_calls(die_at: int, by: int) -> list[int]:
    """Count calls that change the disk, and signal before the `die_at`-th."""
    count = [0]

    def step() -> None:
        count[0] += 1
        if count[0] == die_at:
            os.kill(os.getpid(), by)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and ".merged" in str(arguments[:2]):
            step()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            step()
            return call(*arguments)

        return counting

    sys.addaudithook(audit)
    for name in ("pwrite", "write", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    return count


def _slow_down(pause: float) -> None:
    from mergepipe.write import FileSink

    write = FileSink.write

    def slow(*arguments: Any) -> None:
        time.sleep(pause)
        write(*arguments)

    FileSink.write = slow  # type: ignore[method-assign]
