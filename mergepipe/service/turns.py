"""The one thread in which a service's models work: requests take turns, and wait so long only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.service.guard import Refusal
from mergepipe.service.pool import Limits

__all__ = ["Turns"]

T = TypeVar("T")


@dataclass(slots=True)
class Turns:
    """The thread; `shown` says what is wrong without saying where the service's files are."""

    limits: Limits
    shown: Callable[[InputError], str]
    pending: int = 0  # requests that wait for the model, or have it
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "model"))

    async def work(self, job: Callable[[], T]) -> T:
        """Do something in the thread, in turn.

        Raises
        ------
        Refusal
            if too many wait, or it takes too long; it is then ended as soon as that is possible.

        """
        if self.pending > self.limits.waiting:
            raise Refusal(503, "too many requests wait for the model", 1.0)
        self.pending += 1
        future = self._worker.submit(job)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.seconds)
        except asyncio.TimeoutError:
            raise Refusal(504, f"not done within {self.limits.seconds:g} s: ask for less") from None
        except InputError as error:
            raise Refusal(400, self.shown(error)) from error
        except EnvironmentFault as error:
            raise Refusal(503, "the service lacks memory or disk for that", 30.0) from error

    def _done(self, _: object) -> None:
        self.pending -= 1
