"""How fast a server may be asked and how much that may cost; time is an argument throughout."""

from __future__ import annotations

from dataclasses import dataclass

from mergepipe.errors import InputError, Problem
from mergepipe.model import Usage

__all__ = ["Budget", "Ledger", "Limits", "Pace", "Prices"]

_FIRST_WIDTH = 4
_WIDEN_AFTER = 20  # answers in a row


@dataclass(frozen=True, slots=True)
class Limits:
    """How a server is asked; seconds, and bytes as they are sent.

    `concurrency` is the most requests at a time: 4 at first, one more after 20 answers, half as
    many after a 429. A request is tried `attempts` times and given up if the server asks for a
    wait beyond `longest_wait`. `total_seconds` bounds one attempt from its first byte to its last.
    Raises InputError where `concurrency` or `attempts` is below 1.
    """

    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    attempts: int = 6
    connect_seconds: float = 10.0
    read_seconds: float = 300.0
    total_seconds: float = 600.0
    backoff_seconds: float = 0.5
    backoff_cap: float = 60.0
    longest_wait: float = 300.0
    answer_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.attempts < 1:
            raise InputError(Problem("limits", "concurrency and attempts are at least 1"))


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a million tokens."""

    prompt: float
    generated: float

    def usd(self, prompt_tokens: int, generated_tokens: int) -> float:
        """What a request costs."""
        return (self.prompt * prompt_tokens + self.generated * generated_tokens) / 1e6


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in all, retries included: no request is sent that might go beyond it."""

    requests: int | None = None
    tokens: int | None = None
    usd: float | None = None


class Ledger:
    """What has been spent, and what the requests under way may cost at the worst."""

    def __init__(self, budget: Budget | None) -> None:
        self.budget = budget or Budget()
        self.spent = Usage()
        self.reserved = Usage()

    def reserve(self, worst: Usage) -> str | None:
        """Set `worst` aside; where that might go over the budget, say which part of it instead."""
        total = self.spent + self.reserved + worst
        tokens = total.prompt_tokens + total.generated_tokens
        asked = {"requests": total.requests, "tokens": tokens, "usd": total.usd}
        for unit, amount in asked.items():
            most = getattr(self.budget, unit)
            if most is not None and amount > most:
                return f"the budget of {most} {unit} is spent, or the next request might go over it"
        self.reserved += worst
        return None

    def settle(self, worst: Usage, spent: Usage) -> None:
        """Book what a request that reserved `worst` has cost."""
        self.reserved -= worst
        self.spent += spent


class _Bucket:
    """A token bucket that holds a second's worth; a larger request leaves it in debt."""

    def __init__(self, per_minute: float) -> None:
        self.rate = per_minute / 60
        self.size = max(1.0, self.rate)
        self.level = self.size
        self.at = 0.0

    def delay(self, now: float, amount: float) -> float:
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now
        return max(0.0, (min(amount, self.size) - self.level) / self.rate)


class Pace:
    """How many requests may be under way, and when the next may be sent; shared by all of them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.width = min(_FIRST_WIDTH, limits.concurrency)
        self._answers = 0
        self._paused_until = 0.0
        rates = (limits.requests_per_minute, limits.tokens_per_minute)
        self._buckets = [_Bucket(rate) if rate else None for rate in rates]

    def delay(self, now: float, tokens: int) -> float:
        """Seconds until a request of so many tokens may be sent; at 0 it counts as sent."""
        wanted = [(b, n) for b, n in zip(self._buckets, (1, tokens), strict=True) if b]
        waits = [bucket.delay(now, amount) for bucket, amount in wanted]
        wait = max([self._paused_until - now, 0.0, *waits])
        if wait == 0.0:
            for bucket, amount in wanted:
                bucket.level -= amount
        return wait

    def answered(self, estimated: int, tokens: int) -> None:
        """Widen after a row of answers; give back tokens that were not needed after all."""
        self._answers += 1
        if self._answers % _WIDEN_AFTER == 0:
            self.width = min(self.limits.concurrency, self.width + 1)
        if bucket := self._buckets[1]:
            bucket.level += estimated - tokens

    def throttled(self, now: float, wait: float) -> None:
        """Pause all requests for `wait` seconds; halve the width, once a pause."""
        if now >= self._paused_until:
            self.width = max(1, self.width // 2)
        self._answers = 0
        self._paused_until = max(self._paused_until, now + wait)
