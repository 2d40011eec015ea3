"""Tokens that the model writes in a second, higher is better; and what it reads, and its memory.

    generated  Σ tokens written / Σ seconds, `prompts` of them at a time, `repeats` times
    read       Σ tokens of text scored / Σ seconds
    memory     the most that this process has had in memory so far, in MB (on a GPU: there)

after one round that is not counted. It is a measurement of this machine at this moment, so it is
never taken from a cache; compare only what one run has measured.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

from pydantic import BaseModel, PositiveInt

from mergepipe.evaluate import Context, Item, Metric, Result, ratio
from mergepipe.model import Ability, Model

NEEDS: frozenset[Ability] = frozenset({"generate", "rolling"})

_TEXT = "Once upon a time there was a model that was made of other models. "
_MEBI, _KIBI = 1 << 20, 1 << 10


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """How many `prompts` at a time are gone on with by how many `tokens`, and how often."""

    prompts: PositiveInt = 8
    tokens: PositiveInt = 64
    repeats: PositiveInt = 3


def cached(_: Parameters) -> bool:
    """Tell that results are of the moment."""
    return False


def evaluate(model: Model, context: Context[Parameters]) -> Result:
    """Measure; items are the repeats."""
    parameters = context.parameters
    texts = [f"{number}. {_TEXT}" for number in range(parameters.prompts)]

    def write() -> int:
        done = model.generate(texts, stop=(), max_tokens=parameters.tokens)
        return sum(one.tokens for one in done)

    def read() -> int:
        return sum(score.tokens for score in model.loglikelihood_rolling(texts))

    items = []
    for number in range(parameters.repeats + 1):
        tokens, seconds = _timed(write)
        read_tokens, read_seconds = _timed(read)
        values = {
            "tokens": tokens,
            "seconds": seconds,
            "read_tokens": read_tokens,
            "read_seconds": read_seconds,
        }
        items += [Item(str(number), values)] if number else []
        if context.progress is not None:
            context.progress(number, parameters.repeats)
    unit = "tokens/s"
    return Result(
        {
            "generated": ratio(items, "tokens", "seconds", unit=unit, higher_is_better=True),
            "read": ratio(items, "read_tokens", "read_seconds", unit=unit, higher_is_better=True),
            "memory": Metric(_memory(), False, 1, "MB"),
        },
        tuple(items),
    )


def _timed(work: Callable[[], int]) -> tuple[int, float]:
    start = time.perf_counter()
    count = work()
    return count, time.perf_counter() - start


def _memory() -> float:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / _MEBI
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (_MEBI if sys.platform == "darwin" else _KIBI)
