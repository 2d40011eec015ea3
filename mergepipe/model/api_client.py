"""One request through the official `openai` client: an answer's bytes, or why there are none.

The client never sees the key. The transport below it adds it, to requests for the checked host
alone, and sends nothing but the headers named here: the client would add the user's organisation,
project and system. It bounds the answer, follows no redirect, and reads no `.netrc`.
"""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mergepipe.errors import EnvironmentFault, Problem, printable
from mergepipe.model.api_address import Address
from mergepipe.model.api_answers import excerpt
from mergepipe.model.api_faults import Failure
from mergepipe.model.api_limits import Limits
from mergepipe.model.api_waits import asked_wait

try:
    import httpx2
    import openai
except ImportError as absent:
    raise EnvironmentFault(
        Problem("model: api", f"needs a package: {absent}", "pip install 'mergepipe[api]'")
    ) from absent

__all__ = ["Reply", "open_client", "send"]

_HEADERS = frozenset(
    {"host", "accept", "content-type", "content-length", "user-agent", "idempotency-key"}
)
_RETRIED = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class Reply:
    """The body of an answer with status 200, the key masked."""

    body: bytes
    content_type: str


class _AnswerError(httpx2.TransportError):
    """An answer that is not read to its end."""


class _Bounded(httpx2.AsyncByteStream):
    """A body that ends in an error beyond so many bytes."""

    def __init__(self, inner: Any, limit: int) -> None:
        self._inner = inner
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        room = self._limit
        async for chunk in self._inner:
            room -= len(chunk)
            if room < 0:
                raise _AnswerError(f"the answer is larger than {self._limit >> 20} MiB")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Transport(httpx2.AsyncHTTPTransport):
    """What goes over the wire, and no more of it than we allow."""

    def __init__(self, address: Address, limits: Limits) -> None:
        proxy = None if address.loopback else _proxy(address)
        super().__init__(proxy=proxy, verify=ssl.create_default_context())
        self._address = address
        self._answer_bytes = limits.answer_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        kept = [(name, value) for name, value in request.headers.items() if name in _HEADERS]
        headers = httpx2.Headers([*kept, ("accept-encoding", "identity")])
        if key := self._address.key():
            headers["authorization"] = f"Bearer {key}"
        del key
        # Not changed in place: the client reads its own headers when the answer has come.
        sent = httpx2.Request(
            request.method,
            request.url,
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        response = await super().handle_async_request(sent)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            await response.aclose()
            raise _AnswerError(f"the answer is compressed ({printable(encoding, 40)}) unasked")
        response.stream = _Bounded(response.stream, self._answer_bytes)
        return response


def _proxy(address: Address) -> str | None:
    host, scheme = address.host, urlsplit(address.base_url).scheme
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(scheme) or proxies.get("all")


def open_client(address: Address, limits: Limits) -> openai.AsyncOpenAI:
    """Give a client for one event loop; it neither retries nor redirects nor reads settings."""
    timeout = httpx2.Timeout(limits.read_seconds, connect=limits.connect_seconds, pool=None)
    http_client = httpx2.AsyncClient(
        transport=_Transport(address, limits),
        timeout=timeout,
        follow_redirects=False,
        trust_env=False,
    )
    return openai.AsyncOpenAI(
        api_key="unused",  # see _Transport
        organization="",
        project="",
        base_url=address.base_url,
        max_retries=0,
        timeout=timeout,
        http_client=http_client,
    )


async def send(
    client: openai.AsyncOpenAI, address: Address, route: str, body: Mapping[str, Any], tag: str
) -> Reply | Failure:
    """Ask once: POST, but GET where the body is empty.

    `tag` names the request, so that a server may answer it once though asked twice.
    """
    headers = {"Idempotency-Key": tag}
    try:
        raw = await _sent(client, route, body, headers)
        content, content_type = raw.content, raw.headers.get("content-type", "")
    except openai.APIStatusError as error:
        return _refusal(error.response, address, str(body.get("model", "")))
    except (openai.APIConnectionError, httpx2.HTTPError) as error:
        return _no_answer(error)
    except (ValueError, TypeError) as error:  # a text that is no UTF-8
        return Failure("stop", f"the request cannot be sent: {_masked(str(error), address)[:200]}")
    return Reply(_masked_bytes(content, address), content_type)


async def _sent(
    client: openai.AsyncOpenAI, route: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> Any:
    """Send to a route of OpenAI's API or, where it begins with `/`, of a merge service."""
    routes: dict[str, Any] = {
        "completions": client.completions,
        "chat": client.chat.completions,
        "models": client.models,
    }
    if route == "models":
        return await client.models.with_raw_response.list()
    if route in routes:
        return await routes[route].with_raw_response.create(**body, extra_headers=headers)
    asked: Any = {"cast_to": httpx2.Response, "options": {"headers": headers}}
    return await (client.post(route, body=body, **asked) if body else client.get(route, **asked))


def _masked_bytes(body: bytes, address: Address) -> bytes:
    key = address.key()
    return body.replace(key.encode(), b"[key]") if key else body


def _masked(text: str, address: Address) -> str:
    key = address.key()
    return text.replace(key, "[key]") if key else text


def _refusal(response: httpx2.Response, address: Address, model: str) -> Failure:
    status = response.status_code
    said = excerpt(_masked_bytes(response.content, address)) or "nothing more"
    what = f"status {status}: {said}"
    if 300 <= status < 400:  # noqa: PLR2004
        target = urlsplit(_masked(response.headers.get("location", ""), address))
        to = printable(f"{target.scheme}://{target.netloc}{target.path}", 200)
        fix = "redirects are not followed: write the right base_url"
        return Failure("refused", f"redirects to {to}", fix, status)
    if status in {401, 403}:
        fix = (
            f"check the key in {address.key_env}" if address.key_env else "it wants a key: key_env"
        )
        return Failure("refused", what, fix, status)
    if status == 404:  # noqa: PLR2004
        fix = f"does the server have the model '{printable(model, 100)}'? Does base_url end in /v1?"
        return Failure("refused", what, fix, status)
    if "insufficient_quota" in said:
        return Failure("refused", what, "the account's quota is spent", status)
    if status in _RETRIED or status >= 500:  # noqa: PLR2004
        return Failure("retry", what, status=status, wait=asked_wait(response.headers))
    return Failure("request", what, status=status)


def _no_answer(error: BaseException) -> Failure:
    """Say why there was none. The errors' own words may show headers, so few are repeated."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__ or error)
    for cause in chain:
        if isinstance(cause, _AnswerError):
            return Failure("stop", str(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            what = f"its certificate is refused: {printable(cause.verify_message, 200)}"
            return Failure("stop", what, "name the CA's file in SSL_CERT_FILE if it is yours")
    if isinstance(error, (openai.APITimeoutError, httpx2.TimeoutException)):
        return Failure("retry", "no answer within the time limit")
    last = chain[-1]
    reason = (
        last.strerror if isinstance(last, OSError) else type(chain[min(1, len(chain) - 1)]).__name__
    )
    return Failure("retry", f"no answer: {printable(reason, 200)}")
