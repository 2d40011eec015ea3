"""Several models as one: their next-token distributions mixed by weights, or votes on answers.

What is mixed does not depend on the weights, so each model is asked once, and a mixture by other
weights costs arithmetic. How:

    tokens    models take turns in writing a text, see `mergepipe.model.switching`; with one
              tokenizer, p(t) = Σ_i w_i · p_i(t). Needs ln p of the tokens of given texts.
    bytes     the same, byte by byte, whatever the tokenizers: `mergepipe.model.bytes`. Needs whole
              distributions, so models in this process.
    product   p(t) ∝ Π_i p_i(t)^w_i over one vocabulary (Hinton, "Products of experts", 1999).
              Needs whole distributions of one tokenizer.
    votes     the answer that most weight is on: `mergepipe.model.voting`. Needs texts.

A mixture with all the weight on one model is that model.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

from mergepipe.errors import InputError, Problem
from mergepipe.model import Ability, Generation, Prompt, Score, Usage
from mergepipe.model.answers import Remembered
from mergepipe.model.switching import Spans, aligned, text_logprobs
from mergepipe.model.traces import Trace
from mergepipe.model.voting import elected

if TYPE_CHECKING:
    from mergepipe.model.local import LocalModel

__all__ = ["MIXES", "Ensemble", "Mix", "Mixture"]

Mix: TypeAlias = Literal["tokens", "bytes", "product", "votes"]
MIXES: tuple[Mix, ...] = ("tokens", "bytes", "product", "votes")

_SCORES: frozenset[Ability] = frozenset({"loglikelihood", "rolling"})
_TEXTS: frozenset[Ability] = frozenset({"generate", "chat"})
Active: TypeAlias = "tuple[str, ...]"


@runtime_checkable
class _Here(Protocol):
    """A model that is in this process."""

    @property
    def local(self) -> LocalModel:
        """The model, loaded."""
        ...


@dataclass(slots=True)
class Ensemble:
    """Models by label, and how they are mixed; `answer` names the part of a text to vote on."""

    members: Mapping[str, Remembered]
    mix: Mix = "tokens"
    answer: re.Pattern[str] | None = None
    _aligned: dict[tuple[Active, object], Spans] = field(default_factory=dict)
    _here: dict[Active, list[LocalModel]] = field(default_factory=dict)

    def mixture(
        self, weights: Mapping[str, float], *, switch: float = 1.0, name: str = "mixture"
    ) -> Mixture:
        """Give the mixture by these weights, which are made to sum to 1.

        Raises
        ------
        InputError
            if a weight is below 0, or all are 0.

        """
        total = math.fsum(weights.values())
        if min(weights.values()) < 0 or not 0 < total < math.inf:
            what = "needs weights of 0 or more, not all of them 0"
            raise InputError(Problem(name, what))
        shares = {label: weights[label] / total for label in self.members if weights[label] > 0}
        return Mixture(name, self, shares, switch)

    @property
    def usage(self) -> Usage:
        """What all members were asked."""
        return sum((one.usage for one in self.members.values()), Usage())

    def spans(self, labels: Active, question: object, traces: Sequence[Trace]) -> Spans:
        """Cut a text where tokens of these members begin; once for all weights."""
        key = labels, question
        if key not in self._aligned:
            self._aligned[key] = aligned(traces)
        return self._aligned[key]

    def here(self, labels: Active) -> list[LocalModel]:
        """Give members that are all in this process and have one tokenizer; none if not so."""
        if labels not in self._here:
            models = [self.members[label].model for label in labels]
            found = [one.local for one in models if isinstance(one, _Here)]
            spelled = {one.tokenizer.to_str() for one in found}
            one_kind = len(found) == len(models) and len(spelled) == 1
            self._here[labels] = found if one_kind else []
        return self._here[labels]


@dataclass(frozen=True, slots=True)
class Mixture:
    """A `Model` made of members of an ensemble; `weights`, above 0, sum to 1."""

    name: str
    ensemble: Ensemble
    weights: Mapping[str, float]
    switch: float = 1.0

    @property
    def fingerprint(self) -> str:
        """See `Model`; of the members with their weights, and how they are mixed."""
        ensemble, members = self.ensemble, self.ensemble.members
        pattern = None if ensemble.answer is None else ensemble.answer.pattern
        shares = [[members[label].fingerprint, share] for label, share in self.weights.items()]
        said = json.dumps(["mixture", ensemble.mix, self.switch, pattern, shares])
        return hashlib.sha256(said.encode()).hexdigest()

    @property
    def abilities(self) -> frozenset[Ability]:
        """See `Model`; what all members can do, as far as it can be mixed."""
        some: dict[str, frozenset[Ability]] = {"votes": _TEXTS, "bytes": _SCORES | {"generate"}}
        mixed = some.get(self.ensemble.mix, _SCORES | _TEXTS)
        shared = [self.ensemble.members[label].abilities for label in self.weights]
        return mixed.intersection(*shared)

    @property
    def usage(self) -> Usage:
        """See `Model`; of all members, whichever mixture they were asked for."""
        return self.ensemble.usage

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """See `Model`; a token of any member that goes over the end of a context is scored."""
        self._need("loglikelihood")
        if self.ensemble.mix == "product":
            return self._product([(*one, None) for one in requests], rolling=False)
        asked = [one for one in requests if one[1] or one[0] != one[0].rstrip(" ")]
        columns = [self.ensemble.members[label].trace(asked) for label in self.weights]
        found = iter(self._scored([("pair", *one) for one in asked], columns))
        sizes = [len((c[len(c.rstrip(" ")) :] + text).encode()) for c, text in requests]
        return [_sized(next(found), size) if size else _sized(None, 0) for size in sizes]

    def loglikelihood_rolling(
        self, texts: Sequence[str], *, stride: int | None = None
    ) -> list[Score]:
        """See `Model`; windows are each member's own."""
        self._need("rolling")
        if self.ensemble.mix == "product":
            return self._product([("", text, stride) for text in texts], rolling=True)
        members = self.ensemble.members
        columns = [members[label].trace_texts(texts, stride=stride) for label in self.weights]
        found = self._scored([("text", text, stride) for text in texts], columns)
        return [_sized(one, len(text.encode())) for one, text in zip(found, texts, strict=True)]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        """See `Model`; by votes where members are elsewhere or have several tokenizers."""
        self._need("generate")
        labels, shares = tuple(self.weights), list(self.weights.values())
        members, mix = self.ensemble.members, self.ensemble.mix
        here = [] if mix in {"votes", "bytes"} else self.ensemble.here(labels)
        if here or mix in {"bytes", "product"}:
            from mergepipe.model.mixture_writing import Drawing, write, write_bytes

            drawing = Drawing(tuple(stop), max_tokens, temperature, seed)
            if mix == "bytes":
                models = [members[label].model for label in labels]
                return write_bytes(models, shares, self.switch, prompts, drawing)
            switch = None if mix == "product" else self.switch
            return write(self._one_kind(here), shares, switch, prompts, drawing)
        said = [
            members[label].generate(
                prompts, stop=stop, max_tokens=max_tokens, temperature=temperature, seed=seed
            )
            for label in labels
        ]
        return [elected(one, shares, self.ensemble.answer) for one in zip(*said, strict=True)]

    def _need(self, ability: Ability) -> None:
        if ability in self.abilities:
            return
        if self.ensemble.mix == "votes":
            what = "votes are on answers: they score no texts"
            raise InputError(
                Problem(self.name, what, "mix by `tokens`, or evaluate what it writes")
            )
        for label in self.weights:
            if ability not in self.ensemble.members[label].abilities:
                what = f"its member '{label}' has no answer to '{ability}'"
                fix = "mix answers: `mix: votes`" if ability in _SCORES else ""
                raise InputError(Problem(self.name, what, fix))

    def _scored(
        self, questions: Sequence[object], columns: Sequence[Sequence[Trace]]
    ) -> list[Score]:
        labels, shares = tuple(self.weights), list(self.weights.values())
        spans = [
            self.ensemble.spans(labels, question, traces)
            for question, *traces in zip(questions, *columns, strict=True)
        ]
        values = text_logprobs(spans, shares, self.switch)
        return [
            Score(min(value, 0.0), len(one.logprobs) - one.first, 0, one.is_greedy)
            for value, one in zip(values, spans, strict=True)
        ]

    def _product(
        self, requests: Sequence[tuple[str, str, int | None]], *, rolling: bool
    ) -> list[Score]:
        from mergepipe.model.mixture_scores import product_scores

        here = self._one_kind(self.ensemble.here(tuple(self.weights)))
        return product_scores(here, list(self.weights.values()), requests, rolling=rolling)

    def _one_kind(self, here: list[LocalModel]) -> list[LocalModel]:
        if here:
            return here
        what = "a product is made of whole distributions over one vocabulary"
        fix = "its members must be folders with one tokenizer; or mix by `tokens`"
        raise InputError(Problem(self.name, what, fix))


def _sized(score: Score | None, size: int) -> Score:
    """Give a score with the bytes that it is of; nothing scores 0."""
    if score is None:
        return Score(0.0, 0, 0, greedy=True)
    return Score(score.logprob, score.tokens, size, score.greedy)
