"""How likely bytes are to a model of tokens: its probabilities, summed over the covers of a text.

A cover is a valid encoding whose tokens but the last lie strictly inside the text, so that

    P(x) = Σ_s Σ_left P(left) · Σ_t p(t | left),    left an encoding of x[:s], t spelled x[s:]...

is the probability that what the model writes begins with x (Phan et al. 2024, arXiv 2410.09303).
Valid is what the tokenizer itself would write if the text went on in some way; what a model gives
to other encodings is counted nowhere. Whether a token may follow is asked of the tokenizer with the
text since the last word but one, if its tokens are the same there as in the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ByteModel", "ByteState", "Ids"]

Ids: TypeAlias = tuple[int, ...]
Array: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.int64]

_SPACES = b" \t\n\r"
_LAST = 257  # bytes, and the end


@dataclass
class ByteModel:
    """Bytes of a token model.

    `tokens` is what each id spells. `encode` gives of each of several texts the encodings that it
    has where it stands alone or goes on: mostly one, none where no token ends with it. `logprobs`
    gives ln p of every next token after each of several ids, float64 [id]. `ends` are ids after
    which a text is done.
    """

    tokens: Mapping[int, bytes]
    encode: Callable[[Sequence[bytes]], Sequence[tuple[Ids, ...]]]
    logprobs: Callable[[Sequence[Ids]], Sequence[Array]]
    ends: frozenset[int] = frozenset()
    _valid: dict[tuple[Ids, bytes, int], NDArray[np.bool_]] = field(default_factory=dict)

    def logprob(self, text: bytes) -> float:
        """Give ln of the probability that what the model writes begins with this text."""
        return float(self.logprobs_of_starts(text)[-1])

    def logprobs_of_starts(self, text: bytes) -> Array:
        """Give ln P of every start of a text: float64 [bytes + 1], the first one 0."""
        lefts = self.encode([text[:at] for at in range(len(text))])
        places = [(at, left) for at, several in enumerate(lefts) for left in several]
        after = self.logprobs([left for _, left in places]) if places else ()
        reached = np.full((len(places), len(text) + 1), -np.inf)
        known: dict[Ids, tuple[float, Array]] = {}
        for row, ((at, left), ahead) in enumerate(zip(places, after, strict=True)):
            chain = _chain(left, known)
            known[left] = chain, ahead
            found, shared = self._matching(text, at, left)
            mass = np.bincount(shared, np.exp(ahead[found]), minlength=1)[::-1].cumsum()[::-1]
            with np.errstate(divide="ignore"):
                reached[row, at + 1 : at + len(mass)] = chain + np.log(mass[1:])
        total = _log_sum(reached)
        total[0] = 0.0
        return total

    def next_bytes(self, text: bytes) -> list[float]:
        """Give ln p of each of the 256 bytes after a text, given that a byte follows."""
        found = self.state(text).ahead()[:256]
        with np.errstate(divide="ignore"):
            return [float(value) for value in np.log(found / found.sum())]

    def state(self, text: bytes) -> ByteState:
        """Give what is known after a text, to go on byte by byte."""
        state = ByteState(self, text)
        start = max(0, len(text) - self._spelled.shape[1])
        lefts = self.encode([text[:at] for at in range(start, len(text) + 1)])
        places = [(at, left) for at, several in enumerate(lefts, start) for left in several]
        wanted = list(dict.fromkeys(left[:n] for _, left in places for n in range(len(left) + 1)))
        after = dict(zip(wanted, self.logprobs(wanted) if wanted else (), strict=True))
        for at, left in places:
            chain = sum(float(after[left[:n]][number]) for n, number in enumerate(left))
            state.put(at, chain, left, after[left])
        return state

    def _matching(self, text: bytes, at: int, left: Ids) -> tuple[Numbers, Numbers]:
        """Give the tokens that may come at a place, and how many bytes of the text each shares."""
        numbers = self._by_first.get(text[at], _NONE)
        numbers = numbers[self.may_follow(text[:at], left, text[at])]
        size = min(self._spelled.shape[1], len(text) - at)
        ahead = np.frombuffer(text[at : at + size], np.uint8).astype(np.int16)
        same = self._spelled[self._row[numbers], :size] == ahead
        return numbers, np.cumprod(same, axis=1).sum(axis=1)

    def may_follow(self, text: bytes, left: Ids, first: int) -> NDArray[np.bool_]:
        """Tell which tokens that begin with a byte are valid after a text of this encoding."""
        tail = _tail(text)
        (encodings,) = self.encode([tail])
        ends = [one for one in encodings if left[len(left) - len(one) :] == one]
        tail, before = (tail, ends[0]) if ends else (text, left)
        key = before, tail, first
        if key not in self._valid:
            numbers = self._by_first.get(first, _NONE).tolist()
            encoded = self.encode([tail + self.tokens[number] for number in numbers])
            fits = [
                (*before, number) in several
                for several, number in zip(encoded, numbers, strict=True)
            ]
            self._valid[key] = np.array(fits, dtype=bool)
        return self._valid[key]

    @cached_property
    def firsts(self) -> Sequence[int]:
        """The bytes that tokens begin with."""
        return tuple(self._by_first)

    def beginning(self, first: int) -> Numbers:
        """Give the ids of the tokens that begin with a byte."""
        return self._by_first[first]

    @cached_property
    def _by_first(self) -> dict[int, Numbers]:
        found: dict[int, list[int]] = {}
        for number, spelled in self.tokens.items():
            if spelled:
                found.setdefault(spelled[0], []).append(number)
        return {first: np.array(numbers) for first, numbers in found.items()}

    @cached_property
    def _spelled(self) -> NDArray[np.int16]:
        """Bytes of each token, and -1 behind them: [token, byte]."""
        table = np.full((len(self.tokens), max(map(len, self.tokens.values()))), -1, np.int16)
        for row, spelled in enumerate(self.tokens.values()):
            table[row, : len(spelled)] = list(spelled)
        return table

    @cached_property
    def _row(self) -> Numbers:
        rows = np.zeros(max(self.tokens) + 1, dtype=np.int64)
        rows[list(self.tokens)] = np.arange(len(self.tokens))
        return rows


@dataclass
class ByteState:
    """What is known of the bytes that may come after a text."""

    model: ByteModel
    text: bytes
    _open: list[tuple[int, Numbers, Array]] = field(default_factory=list)
    _chains: dict[Ids, tuple[float, Array]] = field(default_factory=dict)
    _ended: float = -np.inf

    def put(self, at: int, chain: float, left: Ids, ahead: Array) -> None:
        """Add the covers whose last token begins at a place of the text."""
        model, rest = self.model, self.text[at:]
        self._chains[left] = chain, ahead
        if not rest and model.ends:
            ended = chain + float(np.logaddexp.reduce(ahead[list(model.ends)]))
            self._ended = float(np.logaddexp(self._ended, ended))
        for first in model.firsts if not rest else rest[:1]:
            if first not in model.firsts:
                continue
            numbers = model.beginning(first)[model.may_follow(self.text[:at], left, first)]
            longer = [n for n in numbers.tolist() if _goes_on(model.tokens[n], rest)]
            if longer:
                chosen = np.array(longer)
                self._open.append((at, chosen, chain + ahead[chosen]))

    def ahead(self) -> Array:
        """Give what is proportional to p of each next byte, and of the end: float64 [257]."""
        found = np.zeros(_LAST)
        top = max((float(some.max()) for _, _, some in self._open), default=self._ended)
        top = max(top, self._ended)
        for at, numbers, logprobs in self._open:
            place = len(self.text) - at
            following = [self.model.tokens[n][place] for n in numbers.tolist()]
            found += np.bincount(following, np.exp(logprobs - top), minlength=_LAST)
        found[_LAST - 1] = np.exp(self._ended - top)
        return found

    def follow(self, byte: int) -> ByteState:
        """Give what is known after one byte more."""
        model, text = self.model, self.text + bytes([byte])
        state = ByteState(model, text, _chains=dict(self._chains))
        for at, numbers, logprobs in self._open:
            keep = [_goes_on(model.tokens[n], text[at:]) for n in numbers.tolist()]
            if any(keep):
                state._open.append((at, numbers[keep], logprobs[keep]))
        (lefts,) = model.encode([text])
        for left, after in zip(lefts, model.logprobs(lefts) if lefts else (), strict=True):
            state.put(len(text), _chain(left, self._chains), left, after)
        return state


_NONE: Numbers = np.zeros(0, dtype=np.int64)


def _chain(left: Ids, known: Mapping[Ids, tuple[float, Array]]) -> float:
    """Give ln P of an encoding from that of the one without its last token."""
    if not left:
        return 0.0
    before = known.get(left[:-1])
    return -np.inf if before is None else before[0] + float(before[1][left[-1]])


def _goes_on(spelled: bytes, rest: bytes) -> bool:
    return len(spelled) > len(rest) and spelled.startswith(rest)


def _tail(text: bytes) -> bytes:
    """Give the end of a text from the white space before its last two words on."""
    at = len(text)
    for _ in range(2):
        at = len(text[:at].rstrip(_SPACES))
        while at and text[at - 1] not in _SPACES:
            at -= 1
    return text[len(text[:at].rstrip(_SPACES)) :]


def _log_sum(values: Array) -> Array:
    """Give ln Σ exp over the first axis; -inf where there is nothing."""
    if not len(values):
        return np.full(values.shape[1], -np.inf)
    found: Array = np.logaddexp.reduce(values, axis=0)
    return found
