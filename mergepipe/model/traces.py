"""How likely each token of a text is to a model: what mixtures of several models are made of.

A server that echoes prompts with log-probabilities gives as much as a model in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast, runtime_checkable

from mergepipe.errors import InputError, Problem
from mergepipe.model import Ability, Usage

__all__ = ["Known", "TokenScores", "Trace", "Traceable", "joined", "traceable"]

# ln p of some tokens, and whether each was the likeliest.
TokenScores: TypeAlias = "tuple[Sequence[float], Sequence[bool]]"


@dataclass(frozen=True, slots=True)
class Trace:
    """A text by its tokens: where each starts (in characters), its ln p, was it the likeliest.

    What was asked for begins at the token of index `first`; the text has `characters`.
    """

    starts: tuple[int, ...]
    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    first: int
    characters: int


class Known(Protocol):
    """What is known of every model: see `Model`."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def abilities(self) -> frozenset[Ability]: ...  # noqa: D102
    @property
    def usage(self) -> Usage: ...  # noqa: D102


@runtime_checkable
class _Traces(Protocol):
    def trace(self, requests: Sequence[tuple[str, str]]) -> list[Trace]:
        """Trace context and continuation of each request, as `loglikelihood` scores them."""
        ...

    def trace_texts(self, texts: Sequence[str], *, stride: int | None = None) -> list[Trace]:
        """Trace whole texts, as `loglikelihood_rolling` scores them."""
        ...


class Traceable(Known, _Traces, Protocol):
    """A model that says how likely each token of a given text is."""


def traceable(model: Known) -> Traceable:
    """Give a model as one that can be traced.

    Raises
    ------
    InputError
        if it cannot.

    """
    if "loglikelihood" in model.abilities and isinstance(model, _Traces):
        return cast("Traceable", model)
    what = "gives no log-probabilities of the tokens of a text"
    raise InputError(Problem(model.name, what, "mix answers: `mix: votes`"))


def joined(starts: Sequence[int], parts: Iterable[TokenScores], first: int, text: str) -> Trace:
    """Give the trace of a text whose tokens were scored part by part."""
    found = list(parts)
    logprobs = tuple(value for values, _ in found for value in values)
    greedy = tuple(one for _, ones in found for one in ones)
    return Trace(tuple(starts), logprobs, greedy, first, len(text))
