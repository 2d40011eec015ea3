"""How much each key has left: requests a minute, tokens and candidates a day."""

from __future__ import annotations

from dataclasses import dataclass, field

from mergepipe.service.pool import Limits

__all__ = ["Quotas", "Spent"]

_MINUTE, _DAY = 60.0, 86400.0


@dataclass(slots=True)
class _Window:
    """Counts from its first use on, for so many seconds."""

    seconds: float
    most: int
    began: float = float("-inf")
    used: int = 0

    def wait(self, now: float, amount: int) -> float:
        """Seconds until `amount` more may be used; 0 if they may be now."""
        if now - self.began >= self.seconds:
            self.began, self.used = now, 0
        return 0.0 if self.used + amount <= self.most else self.began + self.seconds - now


@dataclass(frozen=True, slots=True)
class Spent:
    """A quota that is used up, and in how many seconds it is not."""

    what: str
    wait: float


@dataclass(slots=True)
class Quotas:
    """Of all keys; time is an argument, in seconds."""

    limits: Limits
    _windows: dict[str, dict[str, _Window]] = field(default_factory=dict)

    def use(self, key: str, now: float, **amounts: int) -> Spent | None:
        """Count `requests`, `tokens` or `candidates`, all or, if one is used up, none."""
        windows = self._windows.setdefault(key, self._fresh())
        waits = {what: windows[what].wait(now, amount) for what, amount in amounts.items()}
        late = max(waits, key=lambda what: waits[what])
        if waits[late]:
            return Spent(late, waits[late])
        self.book(key, **amounts)
        return None

    def book(self, key: str, **amounts: int) -> None:
        """Count what has been used already, even beyond the quota."""
        windows = self._windows.setdefault(key, self._fresh())
        for what, amount in amounts.items():
            windows[what].used += amount

    def _fresh(self) -> dict[str, _Window]:
        limits = self.limits
        return {
            "requests": _Window(_MINUTE, limits.requests_per_minute),
            "tokens": _Window(_DAY, limits.tokens_per_day),
            "candidates": _Window(_DAY, limits.candidates_per_day),
        }
