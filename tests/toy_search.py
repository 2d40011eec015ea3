"""A search of two numbers whose candidates cost nothing: its driver can be killed at any moment.

It is the real loop, study, optimiser and, where workers are asked for, the real pool.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mergepipe.evaluate import Formula, Item, ScoreRow
from mergepipe.search.loop import Loop, Rules
from mergepipe.search.objective import Objective
from mergepipe.search.optimizer import Nevergrad
from mergepipe.search.pool import Answer, Job, Pool, Scorer
from mergepipe.search.space import Number
from mergepipe.search.study import Study, Trial, open_study

GENES = (Number("x", -2, 2, 1.5), Number("y", -2, 2, -1.5))
OBJECTIVE = Objective({"bowl": 1.0})
BUDGET = 12
FORMULA = Formula("loss")
_SERVER = multiprocessing.get_context("forkserver")
_PRELOADED = ["toy_search", "optuna", "nevergrad", "cma"]
_SERVER.set_forkserver_preload(_PRELOADED)


@contextmanager
def quick_workers(*modules: str):
    """Have workers begin as copies of a process that has imported what they need."""
    _SERVER.set_forkserver_preload([*_PRELOADED, *modules])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mergepipe.search.pool._SPAWN", _SERVER)
        yield


def bowl(values: Sequence[object]) -> float:
    return sum((float(str(v)) - 0.3) ** 2 for v in values)


def row(value: float, *, name: str = "bowl", items: int = 4, higher: bool = False) -> ScoreRow:
    """A row whose items have this mean."""
    found = tuple(Item(str(i), {"loss": value + (i - (items - 1) / 2) / 10}) for i in range(items))
    return ScoreRow("m", name, "toy", "loss", value, "u", higher, items, found, formula=FORMULA)


def answer(job: Job) -> Answer:
    return Answer((row(bowl(job.values)),), seconds=0.01)


def in_process(jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
    for job in jobs:
        yield job, answer(job)


def rules(budget: int = BUDGET, batch: int = 4, **others: object) -> Rules:
    return Rules(budget, batch, **others)  # type: ignore[arg-type]


def study_of(folder: Path) -> Study:
    file = folder / "trials.db"
    return open_study(f"sqlite:///{file}", "toy", GENES, objectives=1, where=str(file))


def trials_of(folder: Path) -> list[Trial]:
    return study_of(folder).trials()


def loop_of(
    folder: Path,
    *,
    evaluate=in_process,
    name: str = "CMA",
    limits: Rules | None = None,
    horizon: int = BUDGET,
    seed: int = 0,
) -> Loop:
    limits = limits or rules()
    optimizer = Nevergrad(name, GENES, budget=horizon, batch=limits.batch, seed=seed)
    study = study_of(folder)
    return Loop(optimizer, study, OBJECTIVE, limits, evaluate, lambda _: None)


def logged(folder: Path, wait: float = 0.0):
    """Evaluate in this process, and write a line for every evaluation that ends."""

    def evaluate(jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        for job in jobs:
            time.sleep(wait)
            with (folder / "log").open("a") as log:
                log.write(json.dumps(job.key) + "\n")
            yield job, answer(job)

    return evaluate


def start(folder: Path, die_at: int = 0, *, wait: float = 0.0) -> BaseProcess:
    """Start a driver in a process of its own; it kills itself before its `die_at`-th event."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    process = _SERVER.Process(target=_drive, args=(folder, die_at, wait))
    process.start()
    return process


def _drive(folder: Path, die_at: int, wait: float) -> None:
    left = [die_at]

    def event() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    begin, finish = Study.begin, Study.finish

    def counted(call):
        def counting(*arguments):
            event()
            result = call(*arguments)
            event()
            return result

        return counting

    Study.begin, Study.finish = counted(begin), counted(finish)  # type: ignore[method-assign]
    loop_of(folder, evaluate=logged(folder, wait)).run()


def evaluations(folder: Path) -> list[int]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


# What workers run: each is the `make` of a pool.


def steady(_: object) -> Scorer:
    return answer


def slow(seconds: float) -> Scorer:
    def score(job: Job) -> Answer:
        time.sleep(seconds if job.key % 2 else 0)
        return answer(job)

    return score


def breaking(how: str) -> Scorer:
    """Answer properly, but for candidate 1."""

    def score(job: Job) -> Answer:
        if job.key == 1:
            return _FAULTS[how](job)
        return answer(job)

    return score


def _raises(_: Job) -> Answer:
    raise ValueError("no such \x1b[31mlabel")


def _hangs(_: Job) -> Answer:
    subprocess.Popen(["sleep", "600"], preexec_fn=lambda: signal.signal(15, signal.SIG_IGN))  # noqa: PLW1509
    while True:
        time.sleep(1)


def _prints(job: Job) -> Answer:
    os.write(1, b"x" * 10_000_000)
    sys.stdout.write("y" * 1_000_000)
    sys.stdout.close()
    return answer(job)


def _stops(_: Job) -> Answer:
    raise KeyboardInterrupt


def _nan(_: Job) -> Answer:
    return Answer((row(math.nan),))


_FAULTS = {
    "raises": _raises,
    "hangs": _hangs,
    "prints": _prints,
    "interrupts": _stops,
    "nan": _nan,
    "exits": lambda _: sys.exit(0),
    "vanishes": lambda _: os._exit(0),
    "dies": lambda _: os.kill(os.getpid(), signal.SIGKILL),
}


def pool(folder: Path, make, payload: object = None, *, workers: int = 2, timeout=None) -> Pool:
    return Pool(make, payload, workers=workers, timeout=timeout, scratch=folder / "scratch")
