"""What can be asked of a model: how likely is this text, and what comes next.

Evaluators see a `Model`, never a path or a framework. Every sequence of a causal model starts with
its prefix token (its BOS, or its EOS where it has no BOS), which is not scored; no other special
token is added, and none at the end. A conversation is what the chat template makes of it, and
`mergepipe.model.masked` and `.seq2seq` say what stands for this in such models. Answers come in the
order of the requests and do not depend on how these are batched.

`mergepipe.model.local` asks a checkpoint folder or a merge in memory, `mergepipe.model.api` an
OpenAI-compatible server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal, Protocol, TypeAlias

from typing_extensions import TypedDict

__all__ = ["Ability", "Classifier", "Generation", "Message", "Model", "Prompt", "Score", "Usage"]

# What a model can do; an evaluator says which of them it needs.
Ability: TypeAlias = Literal["loglikelihood", "rolling", "generate", "chat", "classify", "weights"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


# A text to go on with, or a conversation to answer (by the model's chat template).
Prompt: TypeAlias = "str | Sequence[Message]"


@dataclass(frozen=True, slots=True)
class Usage:
    """What answers have cost: `seconds` of waiting for them, `usd` where prices are known."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a text is: `logprob` is the sum of its tokens' ln p, in nats, at most 0.

    `tokens` and `bytes` (of UTF-8) are the scored ones; `greedy` says whether each scored token
    was the likeliest.
    """

    logprob: float
    tokens: int
    bytes: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model wrote, without the stop string, and how many tokens it cost."""

    text: str
    tokens: int


class Model(Protocol):
    """What can be asked."""

    @property
    def name(self) -> str:
        """The name that results are reported under."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells this model from every other one: two with one fingerprint answer alike.

        Of weights, tokenizer, dtype and chat template; of an API, its address and model name.
        """
        ...

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can be asked for."""
        ...

    @property
    def usage(self) -> Usage:
        """What all answers so far have cost."""
        ...

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """Score the continuation of each (context, continuation).

        Spaces that end the context are scored with the continuation, as tokenizers need.
        """
        ...

    def loglikelihood_rolling(
        self, texts: Sequence[str], *, stride: int | None = None
    ) -> list[Score]:
        """Score whole texts, of any length.

        A text longer than the model's limit of L tokens is scored L tokens at a time: the first
        window sees the prefix, later ones at least one token of context, and the last one is
        completed to the left with tokens that are not scored again. With a `stride`, windows after
        the first score so many tokens, and the rest of what they see is context.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        """Continue each text or answer each conversation, up to a stop string, EOS or a limit.

        Temperature 0 takes the likeliest token. Else the draws depend on the seed and the prompt
        alone, so that a prompt asked twice needs two seeds to get two answers.
        """
        ...


class Classifier(Protocol):
    """What more can be asked of a model that can "classify"."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their logits."""
        ...

    def classify(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Give the logits of each text's classes: softmax gives probabilities.

        A model of several labels at once has a sigmoid for each, and one of regression its value.
        """
        ...
