"""What every request must pass before the application sees it.

In this order: the Host must be one of ours (DNS rebinding), the Origin none or ours (cross-site
requests), the key known, its requests not used up; and the body must be whole in time, not too
large, and plain JSON. There are no CORS headers. What goes wrong inside is told to nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mergepipe.errors import printable
from mergepipe.service.keys import LOCAL, holder_of
from mergepipe.service.pool import Limits
from mergepipe.service.quotas import Quotas
from mergepipe.service.strict import NotStrictError, read_json

__all__ = ["Guard", "Refusal", "problem_body"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = frozenset({"/health", "/docs", "/openapi.json"})
_SAFE = (
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
)
_log = logging.getLogger("mergepipe.service")


class Refusal(Exception):
    """An answer that is no success: its status, and what the client may know."""

    def __init__(self, status: int, what: str, wait: float | None = None) -> None:
        super().__init__(status, what)
        self.status, self.what, self.wait = status, what, wait

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        found = {} if self.wait is None else {"retry-after": str(max(1, math.ceil(self.wait)))}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})  # noqa: PLR2004


def problem_body(status: int, what: str) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004
    return {"error": {"message": what, "type": kind, "code": status, "param": None}}


@dataclass(slots=True)
class Guard:
    """The outermost application. `counts` are of (route, status), for metrics."""

    app: App
    keys: Mapping[str, str]
    hosts: frozenset[str]
    limits: Limits
    quotas: Quotas
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._unheard(scope, receive, send)
            return
        began, sent = time.monotonic(), {"status": 0}

        async def answered(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_SAFE]}
            await send(message)

        try:
            await self._guarded(scope, receive, answered)
        except Refusal as refusal:
            await _refuse(answered, refusal)
        except Exception as error:  # noqa: BLE001 -- nothing of it may reach the client
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            places = [f"{frame.name}:{frame.lineno}" for frame in frames]
            _log.error("%s", json.dumps({"error": type(error).__name__, "at": places}))
            if not sent["status"]:
                await _refuse(answered, Refusal(500, "an error inside the service"))
        self._note(scope, sent["status"], time.monotonic() - began)

    async def _unheard(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        await send({"type": "websocket.close", "code": 1008})

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        self._check_origin(headers, scope["scheme"])
        holder = self._holder(headers, scope["path"])
        scope.setdefault("state", {})["key"] = holder
        spent = self.quotas.use(holder, time.monotonic(), requests=1, tokens=0) if holder else None
        if spent:
            raise Refusal(429, f"the key's quota of {spent.what} is used up", spent.wait)
        body = await self._body(headers, receive)
        if body:
            try:
                read_json(body)
            except NotStrictError as error:
                raise Refusal(400, str(error)) from None
        await self.app(scope, _replayed(body, receive), send)

    def _check_origin(self, headers: Mapping[str, str], scheme: str) -> None:
        host = headers.get("host", "").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in self.hosts:
            raise Refusal(421, "this service is not asked by that host name")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{scheme}://{host}":
            raise Refusal(403, "requests from other sites are refused")

    def _holder(self, headers: Mapping[str, str], path: str) -> str:
        """Give the name of the key; empty where none is needed."""
        if path in _OPEN:
            return ""
        if not self.keys:
            return LOCAL
        holder = holder_of(headers.get("authorization", ""), self.keys)
        if holder is None:
            raise Refusal(401, "no key, or one that is not known: Authorization: Bearer KEY")
        return holder

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        most, said = self.limits.body, headers.get("content-length", "0")
        if not said.isascii() or not said.isdigit():
            raise Refusal(400, "Content-Length is no number")
        if int(said) > most:
            raise Refusal(413, f"a body has at most {most} bytes")
        try:
            return await asyncio.wait_for(_read(receive, most), self.limits.header_seconds)
        except asyncio.TimeoutError:
            raise Refusal(408, "the body did not come in time") from None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.counts[route, status] += 1
        self.seconds[route] = self.seconds.get(route, 0.0) + seconds
        said = {
            "key": scope.get("state", {}).get("key", ""),
            "method": printable(scope["method"], 20),
            "path": printable(scope["path"], 200),
            "status": status,
            "ms": round(1000 * seconds),
        }
        _log.info("%s", json.dumps(said))


async def _read(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the body was cut off")
        body += message.get("body", b"")
        if len(body) > most:
            raise Refusal(413, f"a body has at most {most} bytes")
        if not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps(problem_body(refusal.status, refusal.what)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    raw = [(k.encode(), v.encode()) for k, v in {**headers, **refusal.headers}.items()]
    if refusal.status in {400, 408, 413}:
        raw.append((b"connection", b"close"))  # what is left of its body is not waited for
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
