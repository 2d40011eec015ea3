"""Talking to the Hugging Face hub: patience with what passes, plain words for what does not."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from mergepipe.errors import EnvironmentFault, InputError, Problem, printable

__all__ = ["asked", "is_absent", "quietly", "status_of"]

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0
_MOST_WAIT_SECONDS = 600.0  # what a server may ask for
_CONNECT_SECONDS, _ANSWER_SECONDS = 30.0, 300.0
_UNAUTHORIZED, _FORBIDDEN, _MISSING, _TOO_MANY, _SERVER = 401, 403, 404, 429, 500
_PASSES = (408, _TOO_MANY)
_QUERY = re.compile(r"\?[^\s'\"]+")  # of addresses that are signed for a while

T = TypeVar("T")


def asked(
    where: str,
    call: Callable[[], T],
    tell: Callable[[str], None],
    *,
    tries: int,
    done: Callable[[], T | None] | None = None,
) -> T:
    """Give what `call` gives, trying again after faults that pass.

    `done` is asked after a fault that may have come too late: it gives what `call` would have, if
    the server did it all the same.

    Raises
    ------
    InputError
        if the request is wrong.
    EnvironmentFault
        if the server refuses, or cannot be reached for long.

    """
    faults, wait = _faults(), _FIRST_WAIT_SECONDS
    for left in reversed(range(tries)):
        try:
            return call()
        except faults as error:
            pause = _pause(error, wait)
            if pause is None or not left:
                raise _fault(where, error) from error
            tell(f"{where}: {_reason(error)}; trying again in {pause:.0f} s")
        time.sleep(pause)
        wait = min(wait * 2, _LONGEST_WAIT_SECONDS)
        found = None if done is None else done()
        if found is not None:
            return found
    raise AssertionError("the last try returns or raises")


def status_of(error: BaseException) -> int | None:
    """Give the HTTP status that a fault, or what caused it, carries."""
    response = getattr(_root(error), "response", None)
    return None if response is None else int(response.status_code)


def is_absent(error: BaseException) -> bool:
    """Tell whether the hub said that a repository or branch is not there."""
    return status_of(error) == _MISSING


def _root(error: BaseException) -> BaseException:
    """Give the fault that a library's fault was raised from, where that one says more."""
    while getattr(error, "response", None) is None and isinstance(error, RuntimeError):
        if error.__cause__ is None:
            break
        error = error.__cause__
    return error


def _faults() -> tuple[type[Exception], ...]:
    """Give what the hub's client raises."""
    import httpx2

    return OSError, ValueError, RuntimeError, httpx2.HTTPError


def _pause(error: Exception, wait: float) -> float | None:
    """Give the seconds to wait before another try; None where that would change nothing."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    root, status = _root(error), status_of(error)
    if isinstance(root, OfflineModeIsEnabled):
        return None
    if status is None:
        return wait if isinstance(root, (httpx2.TransportError, ConnectionError)) else None
    if status not in _PASSES and status < _SERVER:
        return None
    said = str(root.response.headers.get("Retry-After", ""))  # type: ignore[attr-defined]
    return min(float(said), _MOST_WAIT_SECONDS) if said.isdigit() else wait


def _reason(error: Exception) -> str:
    status = status_of(error)
    if status is not None:
        return f"the server answers {status}"
    return printable(_QUERY.sub("?...", str(_root(error)) or type(_root(error)).__name__), 200)


def _fault(where: str, error: Exception) -> Exception:
    status = status_of(error)
    if status == _UNAUTHORIZED:
        what, fix = "the hub does not know the token (401)", "set HF_TOKEN, or `hf auth login`"
    elif status == _FORBIDDEN:
        what = f"the token may not do this (403){_said(error)}"
        fix = "it needs the scope `write`, or, fine-grained, `repo.write` for this name or owner"
    elif status is None and isinstance(_root(error), ValueError):
        return InputError(Problem(where, _reason(error)))
    elif status is not None and status not in _PASSES and status < _SERVER:
        return InputError(Problem(where, f"the hub refuses it ({status}){_said(error)}"))
    elif "xet-write-token" in str(error):
        what, fix = "the server has no Xet storage", "set HF_HUB_DISABLE_XET=1"
    else:
        what = _reason(error)
        fix = "what was sent stays: the same command sends what is missing"
    return EnvironmentFault(Problem(where, what, fix))


def _said(error: Exception) -> str:
    """Give the server's own words."""
    words = getattr(_root(error), "server_message", None)
    return f": {printable(_QUERY.sub('?...', str(words)), 300)}" if words else ""


@contextmanager
def quietly(tell: Callable[[str], None]) -> Iterator[None]:
    """Let the hub's client neither wait for ever, nor print signed addresses; bars on terminals."""
    import huggingface_hub
    from huggingface_hub.utils import _http
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled as are_off
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    before = _http._GLOBAL_CLIENT_FACTORY  # noqa: SLF001 (there is no public way to ask)
    logger, bars = logging.getLogger("huggingface_hub"), not are_off()
    handlers = list(logger.handlers)
    if bars and not sys.stderr.isatty():
        disable_progress_bars()
    logger.handlers = [_Told(tell)]
    huggingface_hub.set_client_factory(lambda: _impatient(before()))
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(before)
        logger.handlers = handlers
        if bars:
            enable_progress_bars()


def _impatient(client: Any) -> Any:
    import httpx2

    client.timeout = httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
    return client


class _Told(logging.Handler):
    """Says warnings in lines, without what follows a `?` in addresses."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Say one."""
        self.tell(printable(_QUERY.sub("?...", record.getMessage()), 300))
