"""How long a server asks to wait, in seconds."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

__all__ = ["asked_wait"]

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
_RESETS = ("requests", "tokens")


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After (seconds or a date), else the reset of the limit that has been reached.

    >>> asked_wait({"retry-after": "2"})
    2.0
    >>> asked_wait({"x-ratelimit-reset-requests": "1m2.5s", "x-ratelimit-remaining-requests": "0"})
    62.5
    """
    if milliseconds := _number(headers.get("retry-after-ms")):
        return milliseconds / 1000
    if said := headers.get("retry-after"):
        return _seconds(said)
    waits = [
        _seconds(headers.get(f"x-ratelimit-reset-{unit}", ""))
        for unit in _RESETS
        if _number(headers.get(f"x-ratelimit-remaining-{unit}", "0")) == 0
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def _seconds(said: str) -> float | None:
    said = said.strip()
    if (number := _number(said)) is not None:
        return number
    if _DURATION.fullmatch(said):
        return sum(float(amount) * _UNITS[unit] for amount, unit in _PART.findall(said))
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None


def _number(said: str | None) -> float | None:
    plain = said is not None and re.fullmatch(r"\d{1,12}(\.\d{1,9})?", said.strip())
    return float(said) if said is not None and plain else None
