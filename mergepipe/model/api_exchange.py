"""Many requests to one server: paced, tried again, within the budget, each booked."""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from mergepipe.errors import EnvironmentFault, printable
from mergepipe.model import Usage
from mergepipe.model.api_address import Address
from mergepipe.model.api_answers import Answer, read_answer
from mergepipe.model.api_client import Reply, open_client, send
from mergepipe.model.api_faults import Failure
from mergepipe.model.api_limits import Budget, Ledger, Limits, Pace, Prices

__all__ = ["Answers", "Exchange", "Job", "Kept"]

T = TypeVar("T")

_UNSETTLED_SECONDS = 0.02
_LACKING = frozenset({404, 405, 500, 501})  # statuses of servers that cannot do something
_DATED = re.compile(r"(@.*|-\d{4}.*)?", re.DOTALL)  # model@revision, model-2024-07-18


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """A request, the tokens it may cost at the worst, and what is read from its answer.

    An `optional` one is to find out what a server can do: a 404 or 500 is an answer to that.
    """

    route: str
    body: Mapping[str, Any]
    prompt_tokens: int
    new_tokens: int
    read: Callable[[Answer], T | Failure]
    optional: bool = False


class Answers(Protocol):
    """Where answers are kept, so that what was paid for is not paid for again."""

    def answer(self, key: str) -> bytes | None:
        """Give what is kept under a key."""
        ...

    def keep_answer(self, key: str, body: bytes) -> None:
        """Keep it at once: the process may be killed after this."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """Answers of one server; `scope` tells it from others that have its address at other times.

    `known_as` stands for a model that has another name in every run.
    """

    answers: Answers
    scope: str
    known_as: str = ""

    def key(self, base_url: str, job: Job[Any]) -> str:
        """Give the key of a request's answer."""
        body = {**job.body, **({"model": self.known_as} if self.known_as else {})}
        asked = json.dumps([self.scope, base_url, job.route, body], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()


@dataclass(slots=True)
class Exchange:
    """A server as it is asked from one process; calls from several threads take turns."""

    address: Address
    model: str
    served_as: str | None
    limits: Limits
    prices: Prices | None
    budget: Budget | None
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    now: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
    usage: Usage = field(default_factory=Usage)
    kept: Kept | None = None
    ledger: Ledger = field(init=False)
    pace: Pace = field(init=False)
    _refusal: Failure | None = None
    _answered: bool = False
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.budget)
        self.pace = Pace(self.limits)

    @property
    def refusal(self) -> Failure | None:
        """Why the server answers no request of ours, once it has said so."""
        return self._refusal

    def to(self, model: str) -> Exchange:
        """Give the exchange with another model of the server, at one pace and within one budget."""
        found = replace(self, model=model, served_as=None, usage=Usage(), kept=None, _refusal=None)
        found.ledger, found.pace = self.ledger, self.pace
        return found

    def ask(self, jobs: Sequence[Job[T]]) -> tuple[list[T | None], Failure | None]:
        """Answer all jobs, in their order; with the failure that ended it, the missing are None."""
        if not jobs:
            return [], None
        self.address.key()  # that it is still there
        # Its own thread has the event loop: the caller may be inside one (a notebook is).
        with self._turn, start_blocking_portal() as portal:
            return portal.call(self._ask, jobs)

    async def _ask(self, jobs: Sequence[Job[T]]) -> tuple[list[T | None], Failure | None]:
        done: list[T | None] = [None] * len(jobs)
        failures: list[Failure] = []
        todo = iter(range(len(jobs)))
        limiter = anyio.CapacityLimiter(self.pace.width)
        client = open_client(self.address, self.limits)

        async def work(indices: Iterator[int]) -> None:
            for index in indices:
                async with limiter:
                    outcome = await self._answer(client, jobs[index])
                limiter.total_tokens = self.pace.width
                if not isinstance(outcome, Failure):
                    done[index] = outcome
                    continue
                failures.append(outcome)
                if outcome.remedy != "item":
                    group.cancel_scope.cancel()

        async with client, anyio.create_task_group() as group:
            if not self._answered:  # a wrong key or address costs one request, not many
                await work(iter([next(todo)]))
            for _ in range(min(self.limits.concurrency, len(jobs))):
                group.start_soon(work, todo)
        failures.sort(key=lambda failure: failure.remedy == "item")
        return done, failures[0] if failures else None

    async def _answer(self, client: Any, job: Job[T]) -> T | Failure:
        garbled, attempts = 0, self.limits.attempts
        known = self._known(job)
        if known is not None:
            return known
        for attempt in range(attempts):
            if self._refusal:
                return self._refusal
            outcome = await self._attempt(client, job)
            if not isinstance(outcome, Failure):
                return outcome
            garbled += outcome.remedy == "once"
            lacking = job.optional and outcome.status in _LACKING
            if outcome.remedy not in {"retry", "once"} or garbled > 1 or lacking:
                return self._final(outcome, lacking)
            if (outcome.wait or 0.0) > self.limits.longest_wait:
                what = f"{outcome.what}; the server asks for {outcome.wait:.0f} s of waiting"
                return Failure("stop", what, "run again later", outcome.status)
            if attempt + 1 == attempts:
                break
            await self._back_off(outcome, attempt)
        assert isinstance(outcome, Failure)
        return replace(outcome, remedy="stop", what=f"{outcome.what}; tried {attempts} times")

    def _known(self, job: Job[T]) -> T | None:
        """Give the answer that is kept, if it can still be read."""
        found = self.kept and self.kept.answers.answer(self.kept.key(self.address.base_url, job))
        if not found:
            return None
        content_type, _, body = found.partition(b"\n")
        answer = read_answer(body, content_type.decode())
        read = answer if isinstance(answer, Failure) else job.read(answer)
        return None if isinstance(read, Failure) else read

    def _keep(self, job: Job[T], reply: Reply) -> None:
        """Keep an answer; that this cannot be done is no reason to lose it."""
        if self.kept is not None and job.body:
            key = self.kept.key(self.address.base_url, job)
            with suppress(EnvironmentFault):
                self.kept.answers.keep_answer(key, reply.content_type.encode() + b"\n" + reply.body)

    def _final(self, failure: Failure, lacking: bool) -> Failure:
        if failure.remedy == "refused" and not lacking:
            self._refusal = failure
        return replace(failure, remedy="stop") if failure.remedy == "once" else failure

    async def _back_off(self, failure: Failure, attempt: int) -> None:
        """Full jitter: a wait from U(0, min(cap, b 2^a)); after a 429, one for all requests."""
        most = min(self.limits.backoff_cap, self.limits.backoff_seconds * 2**attempt)
        if failure.wait is None and failure.status != 429:  # noqa: PLR2004
            await self.sleep(most * self.draw())
            return
        wait = most * self.draw() if failure.wait is None else failure.wait + 0.1 * self.draw()
        self.pace.throttled(self.now(), wait)

    async def _attempt(self, client: Any, job: Job[T]) -> T | Failure:
        usd = self.prices.usd(job.prompt_tokens, job.new_tokens) if self.prices else 0.0
        worst = Usage(1, job.prompt_tokens, job.new_tokens, 0.0, usd)
        while over := self.ledger.reserve(worst):
            if not self.ledger.reserved.requests:
                return Failure("budget", over, "raise the budget to go on")
            await self.sleep(_UNSETTLED_SECONDS)  # those under way may cost less
        spent = Usage()
        try:
            while wait := self.pace.delay(self.now(), job.prompt_tokens + job.new_tokens):
                await self.sleep(wait)
            spent = worst  # unless we learn that it cost less
            self.usage += Usage(requests=1)
            started = self.now()
            sent = await self._send(client, job)
            cost = sent[1]
            spent = cost or worst
            seconds = self.now() - started
            self.usage += replace(cost or Usage(), requests=0, seconds=seconds)
        finally:
            self.ledger.settle(worst, spent)
        return sent[0]

    async def _send(self, client: Any, job: Job[T]) -> tuple[T | Failure, Usage | None]:
        """Send once; with what it cost, None where the server may have worked in vain."""
        reply: Reply | Failure
        reply = Failure("retry", f"no whole answer within {self.limits.total_seconds:g} s")
        tag = _tag(self.address.base_url, job)
        with anyio.move_on_after(self.limits.total_seconds):
            reply = await send(client, self.address, job.route, job.body, tag)
        if isinstance(reply, Failure):
            return reply, Usage(1) if reply.status else None
        holds = "data" if job.route == "models" else "choices"
        answer = read_answer(reply.body, reply.content_type, holds)
        if isinstance(answer, Failure):
            return answer, None
        cost = self._cost(answer, job)
        self.pace.answered(
            job.prompt_tokens + job.new_tokens, cost.prompt_tokens + cost.generated_tokens
        )
        if other := self._other_model(answer):
            return other, cost
        self._answered = True
        read = job.read(answer)
        if not isinstance(read, Failure):
            self._keep(job, reply)
        return read, cost

    def _cost(self, answer: Answer, job: Job[T]) -> Usage:
        """What the server reports; the worst case where it does not."""
        prompt = job.prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens
        new = job.new_tokens if answer.generated_tokens is None else answer.generated_tokens
        return Usage(1, prompt, new, 0.0, self.prices.usd(prompt, new) if self.prices else 0.0)

    def _other_model(self, answer: Answer) -> Failure | None:
        said, expected = answer.said.get("model"), self.served_as or self.model
        if not isinstance(said, str) or not said:
            return None
        if said.startswith(expected) and _DATED.fullmatch(said[len(expected) :]):
            return None
        what = f"asked for '{printable(expected, 100)}', but '{printable(said, 100)}' answers"
        return Failure("refused", what, "pass served_as with that name if it is the one you mean")


def _tag(base_url: str, job: Job[T]) -> str:
    """The same for the same request, also in a run that is resumed."""
    asked = json.dumps([base_url, job.route, job.body], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:32]
