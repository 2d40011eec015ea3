"""A single request to a route that OpenAI's API has not, tried again where that may help."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mergepipe.model.api_address import Address
from mergepipe.model.api_faults import Failure
from mergepipe.model.api_limits import Limits

__all__ = ["posted"]

T = TypeVar("T")


def posted(
    address: Address,
    route: str,
    body: Mapping[str, Any],
    tag: str,
    read: Callable[[bytes], T | Failure],
    *,
    limits: Limits,
    sleep: Callable[[float], None] = time.sleep,
) -> T | Failure:
    """Give what is read of the answer, or why there is none; `tag` names the request.

    GET where the body is empty. Retries of one request have one tag.
    """
    found: T | Failure = Failure("stop", "it was not asked")
    for attempt in range(limits.attempts):
        found = _once(address, route, body, tag, read, limits=limits)
        if not isinstance(found, Failure) or found.remedy != "retry":
            return found
        wait = _wait(found, attempt, limits)
        if wait > limits.longest_wait:
            what = f"{found.what}; the service asks for {wait:.0f} s of waiting"
            return Failure("stop", what, "run again later", found.status)
        if attempt + 1 < limits.attempts:
            sleep(wait)
    assert isinstance(found, Failure)
    return Failure("stop", f"{found.what}; tried {limits.attempts} times", status=found.status)


def _wait(failure: Failure, attempt: int, limits: Limits) -> float:
    if failure.wait is not None:
        return failure.wait
    most = min(limits.backoff_cap, limits.backoff_seconds * 2.0**attempt)
    return most * random.random()  # noqa: S311 -- full jitter


def _once(
    address: Address,
    route: str,
    body: Mapping[str, Any],
    tag: str,
    read: Callable[[bytes], T | Failure],
    *,
    limits: Limits,
) -> T | Failure:
    from anyio import move_on_after
    from anyio.from_thread import start_blocking_portal

    from mergepipe.model.api_client import Reply, open_client, send

    async def ask() -> Reply | Failure:
        async with open_client(address, limits) as client:
            with move_on_after(limits.total_seconds):
                return await send(client, address, route, body, tag)
        return Failure("retry", f"no whole answer within {limits.total_seconds:g} s")

    with start_blocking_portal() as portal:  # the caller may be inside an event loop
        reply = portal.call(ask)
    return read(reply.body) if isinstance(reply, Reply) else reply
