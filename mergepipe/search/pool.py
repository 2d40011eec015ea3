"""Candidates evaluated in processes of their own, which may hang, die or be killed.

Each worker makes what it needs once, and then answers job after job. It leads a process group, so
that whatever an evaluator started goes with it, and goes itself when the driver does. What it
prints goes nowhere.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from typing import Any, TypeAlias

from mergepipe.errors import EnvironmentFault, InputError, MergepipeError, Problem, printable
from mergepipe.evaluate import Part, ScoreRow
from mergepipe.search.space import Value

__all__ = ["Answer", "Job", "Pool", "Scorer"]

_RETRIES = 2  # of a candidate whose worker died
_PATIENCE = 2.0  # seconds, with a worker that has nothing to do any more
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Job:
    """What is to be scored: a candidate of these values, or the input `label`.

    `items` is how many of the part's items of each evaluation, None for all; a `fresh` answer comes
    from no cache.
    """

    key: int
    values: tuple[Value, ...] = ()
    label: str | None = None
    part: Part = "search"
    items: int | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Answer:
    """The scores, or the reason why there are none; `merging` is a part of `seconds`."""

    rows: tuple[ScoreRow, ...] = ()
    reason: str = ""
    traceback: str = ""
    seconds: float = 0.0
    merging: float = 0.0
    is_environment: bool = False  # a disk's or server's fault, not the candidate's


Scorer: TypeAlias = Callable[[Job], Answer]


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    is_ready: bool = False
    job: Job | None = None
    since: float = 0.0
    tries: dict[int, int] = field(default_factory=dict)


class Pool:
    """Workers that each have a scorer, made by `make(payload)` in its own process.

    A job that takes longer than `timeout` seconds has failed, and its worker is replaced. `scratch`
    is a folder for whatever workers leave behind; it is removed by `close`.
    """

    def __init__(
        self,
        make: Callable[[Any], Scorer],
        payload: object,
        *,
        workers: int,
        timeout: float | None,
        scratch: Path,
    ) -> None:
        self._make, self._payload = make, payload
        self._size, self._timeout, self._scratch = workers, timeout, scratch
        self._workers: list[_Worker] = []
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        """Give the answers as they come.

        Raises
        ------
        InputError, EnvironmentFault
            if a worker cannot begin at all.

        """
        waiting, deaths = deque(jobs), dict.fromkeys((job.key for job in jobs), 0)
        while waiting or any(one.job for one in self._workers):
            while len(self._workers) < min(self._size, len(waiting) + self._busy):
                self._workers.append(self._started())
            for worker in self._workers:
                if worker.is_ready and worker.job is None and waiting:
                    self._give(worker, waiting.popleft())
            for worker in self._heard():
                job, answer = self._listen(worker)
                if job is None:
                    continue
                if answer is None:
                    deaths[job.key] += 1
                    if deaths[job.key] <= _RETRIES:
                        waiting.appendleft(job)
                        continue
                    answer = Answer(reason=f"its process {_death(worker)}, {_RETRIES + 1} times")
                yield job, answer
            yield from self._overdue()

    def close(self) -> None:
        """End all workers and what they started."""
        idle = [worker for worker in self._workers if worker.is_ready and worker.job is None]
        for worker in idle:
            worker.connection.close()  # upon which they end by themselves
        for worker in idle:
            worker.process.join(_PATIENCE)
        for worker in self._workers:
            self._end(worker)
        self._workers.clear()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def _busy(self) -> int:
        return sum(one.job is not None for one in self._workers)

    def _started(self) -> _Worker:
        ours, theirs = _SPAWN.Pipe()
        self._scratch.mkdir(parents=True, exist_ok=True)
        arguments = (theirs, self._make, self._payload, str(self._scratch))
        process = _SPAWN.Process(target=_work, args=arguments, daemon=False)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _give(self, worker: _Worker, job: Job) -> None:
        worker.job, worker.since = job, time.monotonic()
        with suppress(OSError):  # it has died: that is heard soon
            worker.connection.send(job)

    def _heard(self) -> list[_Worker]:
        """Wait until some worker says something, or one is overdue."""
        left = None
        if self._timeout is not None:
            ends = [one.since + self._timeout for one in self._workers if one.job]
            left = max(0.0, min(ends) - time.monotonic()) if ends else None
        by_connection = {one.connection: one for one in self._workers}
        ready = wait(list(by_connection), left)
        return [by_connection[one] for one in ready if isinstance(one, Connection)]

    def _listen(self, worker: _Worker) -> tuple[Job | None, Answer | None]:
        """Take what a worker says: its job and answer; no answer where it died."""
        try:
            said = worker.connection.recv()
        except (EOFError, OSError):
            self._end(worker)
            self._workers.remove(worker)
            if not worker.is_ready:
                what = f"a worker {_death(worker)} before it began"
                raise EnvironmentFault(Problem("search", what)) from None
            return worker.job, None
        if isinstance(said, _Refusal):
            raise said.error()
        if not worker.is_ready:
            worker.is_ready = True
            return None, None
        job, worker.job = worker.job, None
        return job, said

    def _overdue(self) -> Iterator[tuple[Job, Answer]]:
        now = time.monotonic()
        for worker in [one for one in self._workers if one.job]:
            if self._timeout is None or now - worker.since < self._timeout:
                continue
            assert worker.job is not None, "chosen so"
            self._end(worker)
            self._workers.remove(worker)
            seconds = now - worker.since
            yield worker.job, Answer(reason=f"took over {self._timeout:g} s", seconds=seconds)

    def _end(self, worker: _Worker) -> None:
        pid = worker.process.pid
        with suppress(ProcessLookupError, PermissionError):
            if pid is not None:
                os.killpg(pid, signal.SIGKILL)
        worker.process.kill()  # where it had not made its group yet
        worker.process.join()
        worker.connection.close()


def _death(worker: _Worker) -> str:
    code = worker.process.exitcode
    if code is not None and code < 0:
        return f"was killed by signal {signal.Signals(-code).name}"
    return f"exited with status {code} without a result"


@dataclass(frozen=True)
class _Refusal:
    """Why a worker cannot begin, in a form that can be sent."""

    problems: tuple[Problem, ...]
    is_environment: bool

    def error(self) -> MergepipeError:
        kind = EnvironmentFault if self.is_environment else InputError
        return kind(*self.problems)


def _work(
    connection: Connection, make: Callable[[Any], Scorer], payload: object, scratch: str
) -> None:
    """Be a worker."""
    os.setsid()
    threading.Thread(target=_follow_the_driver, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    tempfile.tempdir = scratch
    _silence()
    try:
        scorer = make(payload)
    except MergepipeError as error:
        connection.send(_Refusal(error.problems, error.exit_status == EnvironmentFault.exit_status))
        return
    connection.send(None)
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_answer(scorer, job))


def _answer(scorer: Scorer, job: Job) -> Answer:
    began = time.monotonic()
    try:
        return scorer(job)
    except BaseException as error:  # noqa: BLE001 -- whatever code of others raises, and exits by
        reason = f"{type(error).__name__}: {printable(error, 500)}".removesuffix(": ")
        seconds = time.monotonic() - began
        return Answer(reason=reason, traceback=traceback.format_exc(), seconds=seconds)


def _follow_the_driver() -> None:
    """Go when the driver goes, however that happens."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _silence() -> None:
    if os.environ.get("MERGEPIPE_DEBUG"):
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
