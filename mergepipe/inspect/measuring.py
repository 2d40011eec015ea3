"""Read all tensors once, several at a time, in blocks; bounded memory, as a merge."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from queue import SimpleQueue
from typing import TypeAlias

from mergepipe.execute import default_threads
from mergepipe.execute.worker import Worker, is_plain
from mergepipe.inspect.sums import Sums, sums_of
from mergepipe.kernels.compare import Tally, tally
from mergepipe.method import block_ranges
from mergepipe.plan import Step

__all__ = ["Measured", "Progress", "measure"]

Progress: TypeAlias = Callable[[int], None]  # is told how many more bytes were read


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found in one tensor."""

    sums: Sums
    not_finite: tuple[int, ...]  # models left out, as their values or differences are not numbers


class _StoppedError(Exception):
    """Another tensor failed, or the user interrupted."""


def measure(
    steps: Sequence[Step],
    labels: Sequence[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Measured, ...]:
    """Measure each tensor; what comes out does not depend on the number of threads.

    Raises
    ------
    InputError, EnvironmentFault
        from reading.

    """
    count = threads or default_threads()
    work = _Work(tuple(labels), progress or _silent)
    for _ in range(count):
        work.workers.put(Worker(allow=True))
    with _one_torch_thread(steps), ThreadPoolExecutor(count, "mergepipe") as pool:
        try:
            # The largest first, so that no worker is left alone with one at the end.
            order = sorted(range(len(steps)), key=lambda at: -steps[at].numel)
            jobs: dict[int, Future[Measured]] = {
                at: pool.submit(work.measure, steps[at]) for at in order
            }
            wait(jobs.values(), return_when=FIRST_EXCEPTION)
            for at in order:
                if jobs[at].done():
                    jobs[at].result()
        except BaseException:
            work.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return tuple(jobs[at].result() for at in range(len(steps)))


def _silent(_: int) -> None:
    """Report nothing."""


@contextmanager
def _one_torch_thread(steps: Iterable[Step]) -> Iterator[None]:
    """Keep torch, where it is needed to read, from adding products up in another order."""
    if all(is_plain(one) for step in steps for one in step.all_inputs):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Work:
    labels: tuple[str, ...]
    progress: Progress
    stop: threading.Event = field(default_factory=threading.Event)
    workers: SimpleQueue[Worker] = field(default_factory=SimpleQueue)

    def measure(self, step: Step) -> Measured:
        worker = self.workers.get()
        try:
            ranges = block_ranges(step.target)
            found = reduce(add, (self._tally(worker, step, *one) for one in ranges))
        finally:
            self.workers.put(worker)
        at = [self.labels.index(one.label) for one in step.inputs]
        sums, bad = sums_of(found, at, len(self.labels), step.numel)
        return Measured(sums, tuple(bad))

    def _tally(self, worker: Worker, step: Step, start: int, stop: int) -> Tally:
        if self.stop.is_set():
            raise _StoppedError
        found = tally(worker.read(step, start, stop))
        for one in step.all_inputs:
            self.progress(one.stored.nbytes * (stop - start) // max(one.stored.numel, 1))
        return found
