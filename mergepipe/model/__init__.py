"""What can be asked of a model: how likely is this text, and what comes next.

Evaluators see a `Model`, never a path or a framework. Every sequence starts with the model's
prefix token (its BOS, or its EOS where it has no BOS), which is not scored; no other special
token is added, and none at the end. Answers come in the order of the requests and do not depend
on how these are batched.

`mergepipe.model.local` asks a checkpoint folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Generation", "Model", "Score"]


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

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """Score the continuation of each (context, continuation).

        Spaces that end the context are scored with the continuation, as tokenizers need.
        """
        ...

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Score]:
        """Score whole texts, of any length.

        A text longer than the model's limit of L tokens is scored L tokens at a time: the first
        window sees the prefix, later ones at least one token of context, and the last one is
        completed to the left with tokens that are not scored again.
        """
        ...

    def generate(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        """Continue each prompt, up to a stop string, EOS or `max_tokens`.

        Temperature 0 takes the likeliest token. Else the draws depend on the seed and the prompt
        alone, so that a prompt asked twice needs two seeds to get two answers.
        """
        ...
