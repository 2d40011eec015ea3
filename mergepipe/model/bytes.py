"""How likely bytes are to a model of tokens: its probabilities, summed over the covers of a text.

A cover is a valid encoding whose tokens but the last lie strictly inside the text (Phan et al.
2024, arXiv 2410.09303). Valid is what the tokenizer itself would write; what a model gives to
other encodings is counted nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["ByteModel", "Ids"]

Ids: TypeAlias = tuple[int, ...]


@dataclass(slots=True)
class ByteModel:
    """Bytes of a token model.

    `encode` must be such that every start of a valid encoding is valid, as with BPE;
    `logprobs` gives ln p of every next token after these ids.
    """

    tokens: Mapping[int, bytes]
    encode: Callable[[bytes], Ids]
    logprobs: Callable[[Ids], Sequence[float]]
    _next: dict[Ids, Sequence[float]] = field(default_factory=dict)

    def covers(self, text: bytes) -> dict[Ids, float]:
        """Give the covers of a text and ln p of each."""
        if not text:
            return {(): 0.0}
        found: dict[Ids, float] = {}
        for start in range(len(text)):
            left = self.encode(text[:start])
            before = None
            for number, spelled in self.tokens.items():
                if not spelled.startswith(text[start:]):
                    continue
                ids = (*left, number)
                if self.encode(text[:start] + spelled) == ids:
                    before = self._chain(left) if before is None else before
                    found[ids] = before + self._after(left)[number]
        return found

    def logprob(self, text: bytes) -> float:
        """Give ln of the probability that what the model writes begins with this text."""
        return _log_sum(self.covers(text).values())

    def next_bytes(self, text: bytes) -> list[float]:
        """Give ln p of each of the 256 bytes after a text, given that a byte follows."""
        found = [self.logprob(text + bytes([byte])) for byte in range(256)]
        total = _log_sum(found)
        return [value - total for value in found]

    def _chain(self, ids: Ids) -> float:
        return math.fsum(self._after(ids[:at])[number] for at, number in enumerate(ids))

    def _after(self, ids: Ids) -> Sequence[float]:
        if ids not in self._next:
            self._next[ids] = self.logprobs(ids)
        return self._next[ids]


def _log_sum(values: Iterable[float]) -> float:
    listed = list(values)
    top = max(listed, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in listed))
