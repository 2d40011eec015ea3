"""Plan -> sink. Each worker takes one tensor and goes through it block by block.

It reads the block of every input as stored; a fused kernel, or the method's definition in torch,
merges it in fp32 and rounds once; the bytes go to the sink. What a block gives depends on the
block alone, so bytes never depend on the number of workers or the memory they have. What a survey
has read is read again, from the system's cache of files: as fast as from memory of our own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

from xxhash import xxh3_128

from mergepipe.checkpoint import DTYPES
from mergepipe.errors import EnvironmentFault, NonFiniteError, Problem, printable
from mergepipe.execute.budget import Budget, share_out
from mergepipe.execute.finite import bad_input, finite_bytes
from mergepipe.execute.making import Maker, maker_for
from mergepipe.execute.sink import Progress, Sink
from mergepipe.execute.worker import (
    ModelNonFiniteError,
    Worker,
    hash_rows,
    is_plain,
)
from mergepipe.kernels.compiling import load_numba
from mergepipe.kernels.packed import Packed
from mergepipe.kernels.tiles import KINDS
from mergepipe.method import (
    Block,
    Measure,
    Sampled,
    Statistics,
    add_statistics,
    block_ranges,
    load_method,
    run_survey,
)
from mergepipe.plan import Input, Plan, Step, model_scopes, scope_of

if TYPE_CHECKING:
    import torch

__all__ = ["Surveys", "execute"]


def execute(
    plan: Plan,
    sink: Sink,
    *,
    done: Collection[str] = (),
    threads: int | None = None,
    max_memory: int | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
    surveys: Surveys | None = None,
) -> None:
    """Make every tensor of `plan` but those already `done`, and hand it to `sink`.

    `threads` and `max_memory` (bytes of buffers) default to what the machine has. On a `device`
    the definitions run in torch; without one, fused kernels on the CPU where a method has one.
    `surveys` keeps what was found for the next run.

    Raises
    ------
    NonFiniteError
        if an input holds NaN or infinity, or a result does not fit the output dtype, and the
        plan's `nan_policy` does not say otherwise.
    InputError, EnvironmentFault
        from reading and from the sink; if the memory is not enough.

    """
    load_numba()
    budget = share_out([plan], threads, max_memory)
    run = _Run(plan, sink, progress or _silent, budget, device, surveys or Surveys())
    for _ in range(budget.workers):
        run.workers.put(Worker(allow=plan.nan_policy == "allow", device=device))
    with ExitStack() as stack:
        if run.needs_torch:
            stack.enter_context(_one_torch_thread())
        pool = stack.enter_context(ThreadPoolExecutor(budget.workers, "mergepipe"))
        try:
            found = run.survey_models(pool, done)
            left = [step for step in plan.steps if step.name not in done]
            # The largest first, so that no worker is left alone with one at the end.
            left.sort(key=lambda step: -step.bytes_read)
            _finish([pool.submit(run.make, step, found) for step in left])
        except BaseException:
            run.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _silent(_: int) -> None:
    """Report nothing."""


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finish(jobs: list[Future[None]]) -> None:
    """Wait for all jobs; raise the first failure in their order."""
    wait(jobs, return_when=FIRST_EXCEPTION)
    for job in jobs:
        if job.done():
            job.result()
    assert all(job.done() for job in jobs), "a failed job was raised above"


# (which call of the step, tensor) -> what its survey over the model found
Found: TypeAlias = dict[tuple[int, str], Any]


class Surveys:
    """What surveys of methods found, kept from one run to the next.

    `begin` is given, by tensor, all that the survey of its method depends on; what it says nothing
    of is not kept.
    """

    def __init__(self) -> None:
        self._keys: Mapping[str, str] = {}
        self._found: dict[tuple[str, ...], tuple[list[str], Any]] = {}

    def begin(self, keys: Mapping[str, str]) -> None:
        """Say what the surveys of the next run depend on."""
        self._keys = keys
        kept = {names: one for names, one in self._found.items() if one[0] == self._known(names)}
        self._found = kept

    def of(self, steps: Iterable[Step], survey: Callable[[], Any]) -> Any:
        """Give what was found of the tensors of a scope, by a survey if nothing was."""
        names = tuple(step.name for step in steps)
        if names in self._found:
            return self._found[names][1]
        found, known = survey(), self._known(names)
        if len(known) == len(names):
            self._found[names] = known, found
        return found

    def _known(self, names: Iterable[str]) -> list[str]:
        return [self._keys[name] for name in names if name in self._keys]


class _StoppedError(Exception):
    """Another tensor failed, or the user interrupted."""


@dataclass(frozen=True)
class _Run:
    plan: Plan
    sink: Sink
    progress: Progress
    budget: Budget
    device: torch.device | None
    surveys: Surveys
    stop: threading.Event = field(default_factory=threading.Event)
    workers: SimpleQueue[Worker] = field(default_factory=SimpleQueue)
    # Tensors that the base keeps because a model's is not finite: name -> what is wrong.
    kept: dict[str, str] = field(default_factory=dict)

    @property
    def needs_torch(self) -> bool:
        """Whether any step does; torch is slow to import, so others go without."""
        return self.device is not None or any(_needs_torch(step) for step in self.plan.steps)

    @contextmanager
    def _worker(self, step: Step) -> Iterator[Worker]:
        worker = self.workers.get()
        try:
            with worker.at_work():
                yield worker
        except MemoryError as error:
            what, fix = "the memory was not enough for it", "lower --max-memory or --threads"
            raise EnvironmentFault(Problem(printable(step.name, 200), what, fix)) from error
        finally:
            self.workers.put(worker)

    def survey_models(self, pool: ThreadPoolExecutor, done: Collection[str]) -> Found:
        """Run the surveys whose scope is the model; what they found, by call and tensor."""
        found: Found = {}
        for at in range(max((len(step.calls) for step in self.plan.steps), default=0)):
            for steps in model_scopes(self.plan.steps, at):
                if all(step.name in done for step in steps):
                    continue
                measure_all = partial(self._measure_all, pool, steps, found, at)
                survey = partial(_survey, steps, at, measure_all)
                knowledge = survey() if at else self.surveys.of(steps, survey)
                found.update({(at, step.name): knowledge for step in steps})
        return found

    def _measure_all(
        self, pool: ThreadPoolExecutor, steps: list[Step], found: Found, at: int, measure: Measure
    ) -> Iterator[Statistics]:
        return pool.map(partial(self._measure, measure, found, at), steps)

    def _measure(self, measure: Measure, found: Found, at: int, step: Step) -> Statistics:
        """Measure one tensor of a scope that is the model."""
        with self._worker(step) as worker:
            if step.name not in self.kept:
                try:
                    before = self._knowledge(worker, step, found, at)
                    return self._measured(measure, worker, step, before)
                except ModelNonFiniteError as fault:
                    self._keep(step, fault)
            return self._measured(measure, worker, step, self._knowledge(worker, step, found, at))

    def _knowledge(self, worker: Worker, step: Step, found: Found, calls: int) -> list[Any]:
        """What the surveys of the first calls of a step found."""
        known: list[Any] = []
        for at in range(calls):
            if (at, step.name) in found:
                known.append(found[at, step.name])
                continue

            def measure_all(measure: Measure) -> list[Statistics]:
                return [self._measured(measure, worker, step, known)]

            survey = partial(_survey, [step], at, measure_all)
            known.append(survey() if at else self.surveys.of([step], survey))
        return known

    def _measured(
        self, measure: Measure, worker: Worker, step: Step, before: list[Any]
    ) -> Statistics:
        """Measure what the calls before have merged; of the inputs, where there are none."""
        blocks, maker = self._blocks(worker, step, measure), maker_for(step, self.device)
        return add_statistics(measure(maker.merged(block, before)) for _, block in blocks)

    def _keep(self, step: Step, fault: NonFiniteError) -> None:
        """Let the base keep a tensor, or raise what is wrong with a model's."""
        if self.plan.nan_policy != "base":
            raise fault
        problem = fault.problems[0]
        self.kept[step.name] = f"kept from the base: {problem.where} {problem.what}"

    def make(self, step: Step, found: Found) -> None:
        """Make one output tensor."""
        with self._worker(step) as worker:
            if step.method is None:
                self._copy(worker, step)
                return
            if step.name not in self.kept:
                try:
                    self._merge(worker, step, found)
                except ModelNonFiniteError as fault:
                    self._keep(step, fault)
                else:
                    return
            self._copy_base(worker, step)

    def _merge(self, worker: Worker, step: Step, found: Found) -> None:
        maker = maker_for(step, self.device)
        knowledge = self._knowledge(worker, step, found, len(step.calls))
        hashers = [xxh3_128() for _ in step.all_inputs]
        for packed, block in self._blocks(worker, step):
            hash_rows(packed, hashers)
            data = maker.make(worker, block, knowledge)
            self.sink.write(step, block.start, data)
        self._done(step, hashers, "")

    def _copy_base(self, worker: Worker, step: Step) -> None:
        """Write the base's tensor where a model's is not finite."""
        maker = Maker(step, None)
        hashers = [xxh3_128() for _ in step.all_inputs]
        for packed, block in self._blocks(worker, step):
            hash_rows(packed, hashers)
            self.sink.write(step, block.start, maker.first(worker, packed))
        self._done(step, hashers, self.kept[step.name])

    def _done(self, step: Step, hashers: Iterable[xxh3_128], note: str) -> None:
        self.sink.finish(step, tuple(f"xxh3:{hasher.hexdigest()}" for hasher in hashers), note)

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise _StoppedError

    def _blocks(
        self, worker: Worker, step: Step, measure: Measure | None = None
    ) -> Iterator[tuple[Packed, Block[Any, Any]]]:
        """Give the blocks of a step, as stored and as its method takes them.

        With a measurement, only the share of each that it needs.
        """
        maker = maker_for(step, self.device)
        only = step.name in self.kept
        for start, stop in step_ranges(step):
            self._go_on()
            count = stop - start
            if isinstance(measure, Sampled):
                count = measure.count(count)
            packed = worker.read(step, start, start + count, base_only=only)
            self.progress(_bytes(step.all_inputs, count))
            yield packed, maker.block(start, packed, self.plan.seed)

    def _copy(self, worker: Worker, step: Step) -> None:
        source = step.inputs[0]
        hasher = xxh3_128()
        as_stored = source.name not in source.checkpoint.low_rank
        for start, stop in block_ranges(step.target):
            self._go_on()
            if as_stored and source.stored.dtype == step.dtype:
                data = worker.raw(source, start, stop)
                hasher.update(data.data)
                if self.plan.nan_policy != "allow" and not finite_bytes(data, step.dtype):
                    raise bad_input(source, Maker.exact(source, start, stop))
            else:
                packed = worker.read(step, start, stop)
                hash_rows(packed, [hasher])
                data = Maker(step, None).first(worker, packed)
            self.progress(_bytes([source], stop - start))
            self.sink.write(step, start, data)
        self._done(step, [hasher], "")


def _needs_torch(step: Step) -> bool:
    if step.method is None:
        return not is_plain(step.inputs[0]) and step.inputs[0].stored.dtype != step.dtype
    kernel = load_method(step.method).kernel_for(step.shared)
    return (
        bool(step.then)
        or kernel is None
        or step.dtype not in KINDS
        or not all(map(is_plain, step.all_inputs))
    )


def _survey(
    steps: list[Step], at: int, measure_all: Callable[[Measure], Iterable[Statistics]]
) -> Any:
    """Run the survey of one of the steps' calls, if it has one."""
    method = steps[0].calls[at].method
    if method.survey is None:
        return None
    survey = method.survey(scope_of(steps, at))
    return run_survey(survey, lambda measure: add_statistics(measure_all(measure)))


def step_ranges(step: Step) -> Iterator[tuple[int, int]]:
    """Give the blocks of a merged tensor."""
    assert step.method is not None, "only merged tensors have blocks"
    return block_ranges(step.target, step.cut)


def _bytes(inputs: Iterable[Input], count: int) -> int:
    return sum(DTYPES[one.stored.dtype].itemsize for one in inputs) * count
