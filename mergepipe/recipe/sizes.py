"""Sizes as people write them: `5GB`, `512MiB`."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["as_bytes"]

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*(?:([KMGT])(i?))?B?", re.IGNORECASE | re.ASCII)


def as_bytes(value: object) -> object:
    """Read a size: `5GB` is 5·10⁹ bytes, `5GiB` 5·2³⁰."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        number, unit, binary = match.groups()
        power = " KMGT".index(unit.upper()) if unit else 0
        value = int(Decimal(number) * (1024 if binary else 1000) ** power)
    if type(value) is not int or value < 1:
        raise ValueError("not a size: write bytes, or a number with KB, MB, GB, TB, as in 5GB")
    return value
