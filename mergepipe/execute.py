"""Plan -> sink: read, merge and write tensors, several at a time, in bounded memory.

Each worker takes one tensor, block by block: it reads the block of every input, upcasts to fp32,
calls the method, rounds once to the output dtype, checks that the values are finite, and hands
them to the sink. What a block gives depends on the block alone, so bytes never depend on the
number of workers. torch runs one thread per worker for the same reason.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergepipe.checkpoint import DTYPES, read_range, read_values, torch_dtype
from mergepipe.errors import NonFiniteError, Problem
from mergepipe.method import (
    Block,
    Measure,
    Statistics,
    add_statistics,
    block_ranges,
    load_method,
    run_survey,
)
from mergepipe.plan import Input, Plan, Step, model_scopes, scope_of

__all__ = ["Progress", "Sink", "default_threads", "execute"]

Progress: TypeAlias = Callable[[int], None]


class Sink(Protocol):
    """Where merged tensors go: files, or the parameters of a live module."""

    def write(self, step: Step, start: int, data: NDArray[np.uint8]) -> None:
        """Take the bytes of elements from flat index `start` on, in the step's dtype.

        One thread gives all of a step's blocks, in order; steps come from several threads.
        """

    def finish(self, step: Step, inputs: tuple[str, ...], note: str) -> None:
        """Know that a step is whole.

        `inputs` are the digests of the bytes of `step.all_inputs`; `note` says what is to be known
        of the tensor, or is empty.
        """


def default_threads() -> int:
    """Give the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(
    plan: Plan,
    sink: Sink,
    *,
    done: Collection[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Make every tensor of `plan` but those already `done`, and hand it to `sink`.

    `progress` is called with the number of bytes read since its last call, from any thread.

    Raises
    ------
    NonFiniteError
        if an input holds NaN or infinity, or a result does not fit the output dtype.
    InputError, EnvironmentFault
        from reading and from the sink.

    """
    workers = threads or default_threads()
    run = _Run(plan, sink, progress or _silent, threading.Event())
    with _one_torch_thread(), ThreadPoolExecutor(workers, "mergepipe") as pool:
        try:
            found = run.survey_models(pool, done)
            jobs = [pool.submit(run.make, s, found) for s in plan.steps if s.name not in done]
            _finish(jobs)
        except BaseException:
            run.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _silent(_: int) -> None:
    """Report nothing."""


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finish(jobs: list[Future[None]]) -> None:
    """Wait for all jobs; raise the first failure in the plan's order."""
    wait(jobs, return_when=FIRST_EXCEPTION)
    for job in jobs:
        if job.done():
            job.result()
    assert all(job.done() for job in jobs), "a failed job was raised above"


@dataclass(frozen=True, slots=True)
class _Run:
    plan: Plan
    sink: Sink
    progress: Progress
    stop: threading.Event

    def survey_models(self, pool: ThreadPoolExecutor, done: Collection[str]) -> dict[str, Any]:
        """Run the surveys whose scope is the model; what they found, by tensor."""
        found = {}
        for steps in model_scopes(self.plan.steps):
            if all(step.name in done for step in steps):
                continue
            knowledge = self._survey(steps, pool.map)
            found.update({step.name: knowledge for step in steps})
        return found

    def _survey(self, steps: list[Step], over: Callable[..., Iterable[Statistics]]) -> Any:
        """Run one survey; `over` is the `map` that spreads it over tensors."""
        method = load_method(_method_name(steps[0]))
        assert method.survey is not None, "a scope belongs to a survey"
        return run_survey(
            method.survey(scope_of(steps)),
            lambda measure: add_statistics(over(partial(self._measure, measure), steps)),
        )

    def _measure(self, measure: Measure, step: Step) -> Statistics:
        return add_statistics(measure(block) for block in self._blocks(step))

    def make(self, step: Step, found: Mapping[str, Any]) -> None:
        """Make one output tensor."""
        if step.method is None:
            self._copy(step)
            return
        method = load_method(step.method)
        knowledge = found.get(step.name)
        if method.survey is not None and step.name not in found:
            knowledge = self._survey([step], map)
        for block in self._blocks(step):
            merged = method.merge(block, knowledge)
            values = merged.to(torch_dtype(step.dtype))
            _check_result(step, merged, values)
            self.sink.write(step, block.start, _bytes_of(values))
        self._finish(step)

    def _finish(self, step: Step) -> None:
        if not self.stop.is_set():
            self.sink.finish(step, (), "")

    def _blocks(self, step: Step) -> Iterator[Block[Any, Any]]:
        assert step.shared is not None, "a step with a method has parameters"
        rows = load_method(_method_name(step)).whole_rows(step.shared)
        for start, stop in block_ranges(step.numel, step.columns, whole_rows=rows):
            if self.stop.is_set():
                return
            values = [_read_finite(one, start, stop) for one in step.all_inputs]
            self.progress(sum(_bytes(one, stop - start) for one in step.all_inputs))
            base = values.pop(0) if step.base is not None else None
            yield Block(
                tensor=step.name,
                start=start,
                base=base,
                models=tuple(values),
                labels=tuple(one.label for one in step.inputs),
                each=step.each,
                shared=step.shared,
                seed=self.plan.seed,
                columns=step.columns,
            )

    def _copy(self, step: Step) -> None:
        source = step.inputs[0]
        as_stored = source.name not in source.checkpoint.low_rank
        same = as_stored and source.stored.dtype == step.dtype
        for start, stop in block_ranges(step.numel, step.columns, whole_rows=False):
            if self.stop.is_set():
                return
            if same:
                values = read_range(source.stored, start, stop)
                _check_input(source, values)
            else:
                exact = _read_finite(source, start, stop)
                values = exact.to(torch_dtype(step.dtype))
                _check_result(step, exact, values)
            self.progress(_bytes(source, stop - start))
            self.sink.write(step, start, _bytes_of(values))
        self._finish(step)


def _bytes_of(values: Tensor) -> NDArray[np.uint8]:
    return values.contiguous().view(torch.uint8).numpy()


def _method_name(step: Step) -> str:
    assert step.method is not None, "only merged tensors are surveyed"
    return step.method


def _bytes(one: Input, count: int) -> int:
    return DTYPES[one.stored.dtype].itemsize * count


def _read_finite(one: Input, start: int, stop: int) -> Tensor:
    values = read_values(one.checkpoint, one.name, start, stop)
    _check_input(one, values)
    return values


def _is_finite(values: Tensor) -> bool:
    if not values.is_floating_point() or values.numel() == 0:
        return True
    wide = values.float() if values.element_size() == 1 else values
    low, high = torch.aminmax(wide)  # NaN propagates
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _check_input(one: Input, values: Tensor) -> None:
    if _is_finite(values):
        return
    bad = ~torch.isfinite(values.float())
    kind = "nan" if bool(values.float().isnan().any()) else "inf"
    raise NonFiniteError(
        Problem(
            f"{one.label} ({one.checkpoint.folder.name}/{one.stored.file.name}): {one.name}",
            f"holds {kind}: {int(bad.sum())} values are not finite",
            "the model is broken; use another, or `take` this tensor from one that is whole",
        )
    )


def _check_result(step: Step, exact: Tensor, values: Tensor) -> None:
    if _is_finite(values):
        return
    largest = float(exact.abs().max())
    raise NonFiniteError(
        Problem(
            step.name,
            f"a merged value of {largest:.3g} does not fit {step.dtype}",
            "write `output: {dtype: bfloat16}` or float32, or lower the weights",
        )
    )
