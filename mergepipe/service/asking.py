"""What a candidate answers: completions and scores of prompts, chats, losses; JSON in, JSON out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from mergepipe.errors import InputError, Problem
from mergepipe.model import Generation, Message, Score
from mergepipe.model.causal import CAUSAL
from mergepipe.model.writing import Request, write

if TYPE_CHECKING:
    from mergepipe.model.local import LocalModel

__all__ = ["Answered", "ChatBody", "CompletionBody", "LossBody", "chat", "complete", "loss"]

_NOTHING = Generation("", 0)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class _Sampling(_Body):
    model: str = Field(max_length=100, description="a candidate's id")
    max_tokens: int = Field(16, ge=0)
    temperature: float = Field(1.0, ge=0, le=10)
    seed: int = 0
    stop: str | list[str] | None = None
    n: Literal[1] = 1
    stream: Literal[False] = False
    user: str | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in found if text]


class CompletionBody(_Sampling):
    """Texts, or token ids, to be continued or (`echo`, `logprobs`) scored."""

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if all(isinstance(one, int) for one in prompt):
            return [[one for one in prompt if isinstance(one, int)]]
        return [one for one in prompt if not isinstance(one, int)]

    @model_validator(mode="after")
    def _can_be_scored(self) -> CompletionBody:
        if self.logprobs is not None and self.max_tokens > 1:
            raise ValueError("logprobs are of prompts: they need max_tokens 0 or 1")
        return self


class ChatBody(_Sampling):
    """A conversation to be answered, by the base's chat template."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class LossBody(_Body):
    """Texts to be scored whole, or the labels of (prompt, label) pairs."""

    candidate: str = Field(max_length=100)
    texts: list[str] | None = None
    stride: PositiveInt | None = None
    pairs: list[list[str]] | None = None

    @property
    def count(self) -> int:
        """How many items it has."""
        return len(self.texts or self.pairs or ())

    @model_validator(mode="after")
    def _one_kind(self) -> LossBody:
        if (self.texts is None) == (self.pairs is None):
            raise ValueError("give either texts or pairs")
        if any(len(pair) != 2 for pair in self.pairs or ()):  # noqa: PLR2004
            raise ValueError("a pair is [prompt, label]")
        return self


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and the tokens that it took."""

    said: dict[str, Any]
    tokens: int


def loss(model: LocalModel, body: LossBody) -> Answered:
    """Give each item's score, and the mean negative log-likelihood of a token, in nats."""
    before = model.usage
    if body.texts is not None:
        scores = model.loglikelihood_rolling(body.texts, stride=body.stride)
    else:
        scores = model.loglikelihood([(one[0], one[1]) for one in body.pairs or ()])
    read = (model.usage - before).prompt_tokens
    tokens = sum(score.tokens for score in scores)
    mean = -sum(score.logprob for score in scores) / tokens if tokens else None
    said = {
        "object": "loss",
        "model": body.candidate,
        "loss": mean,
        "scores": [_score(score) for score in scores],
        "usage": _usage(read, 0),
    }
    return Answered(said, read)


def _score(score: Score) -> dict[str, Any]:
    return {
        "logprob": score.logprob,
        "tokens": score.tokens,
        "bytes": score.bytes,
        "greedy": score.greedy,
    }


def complete(model: LocalModel, body: CompletionBody) -> Answered:
    """Continue prompts. Before a text stands the model's prefix token, which `echo` shows."""
    if model.family is not CAUSAL:
        raise InputError(Problem("model", "it is no causal model, so it completes no texts"))
    asked = [_prompt(model, prompt) for prompt in body.prompts]
    for one in asked:
        needed = len(one.ids) + body.max_tokens
        model.loaded.check_length(needed, "a prompt and its new tokens")
    if body.logprobs is None:
        found = _continued(model, asked, body) if body.max_tokens else [_NOTHING] * len(asked)
        columns: list[dict[str, list[Any]] | None] = [None] * len(asked)
    else:
        scored = [_scored(model, one, body) for one in asked]
        found, columns = [one for one, _ in scored], [column for _, column in scored]
    choices = [
        {
            "index": index,
            "text": one.text + new.text if body.echo else new.text,
            "finish_reason": "length" if new.tokens == body.max_tokens else "stop",
            "logprobs": column,
            "completion_tokens": new.tokens,
        }
        for index, (one, new, column) in enumerate(zip(asked, found, columns, strict=True))
    ]
    tokens = sum(len(one.ids) for one in asked), sum(one.tokens for one in found)
    return Answered(_said("text_completion", model, body.model, choices, tokens), sum(tokens))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt's ids, where each starts in `text` (in characters), and that text.

    Draws depend on `seed`.
    """

    ids: list[int]
    starts: list[int]
    text: str
    seed: str


def _prompt(model: LocalModel, prompt: str | list[int]) -> _Asked:
    loaded = model.loaded
    if isinstance(prompt, str):
        prefix = loaded.special.prefix
        assert prefix is not None, "a causal model is not loaded without one"
        first = str(loaded.tokenizer.id_to_token(prefix))
        encoding = loaded.tokenizer.encode(prompt, add_special_tokens=False)
        ids = loaded.encode([prompt])[0]
        starts = [len(first) + start for start, _ in encoding.offsets]
        return _Asked([prefix, *ids], [0, *starts], first + prompt, prompt)
    rows = model.module.get_input_embeddings().weight.shape[0]
    if not prompt or not all(0 <= i < rows for i in prompt):
        raise InputError(Problem("prompt", f"token ids are from 0 to {rows - 1}, and at least one"))
    pieces = [_token(model, i) for i in prompt]
    starts = [sum(map(len, pieces[:at])) for at in range(len(pieces))]
    return _Asked(list(prompt), starts, "".join(pieces), str(prompt))


def _continued(
    model: LocalModel, asked: Sequence[_Asked], body: CompletionBody
) -> list[Generation]:
    """Continue prompts together, as `LocalModel.generate` does."""
    return write(
        model.loaded,
        model.family,
        [Request(one.seed, one.ids) for one in asked],
        stop=body.stops,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        seed=body.seed,
    )


def _scored(
    model: LocalModel, asked: _Asked, body: CompletionBody
) -> tuple[Generation, dict[str, list[Any]]]:
    """Give the likeliest next token if one is asked for, and the columns of all tokens."""
    table, ids, new = _log_probabilities(model, asked.ids), list(asked.ids), _NOTHING
    if body.max_tokens:
        ids.append(int(table[-1].argmax()))
        new = Generation(_token(model, ids[-1]), 1)
    return new, _columns(model, asked, ids, table, body)


def _log_probabilities(model: LocalModel, ids: Sequence[int]) -> torch.Tensor:
    """Log-softmax in fp32 of the logits after each token."""
    with torch.inference_mode():
        batch, mask = model.loaded.padded([ids])
        logits = model.module(input_ids=batch, attention_mask=mask, use_cache=False).logits[0]
        table: torch.Tensor = logits.float().log_softmax(-1)
        return table


def _columns(
    model: LocalModel, asked: _Asked, ids: list[int], table: torch.Tensor, body: CompletionBody
) -> dict[str, list[Any]]:
    first = 0 if body.echo else len(asked.ids)
    starts = [*asked.starts, *[len(asked.text)] * (len(ids) - len(asked.ids))]
    rows = list(_rows(model, ids, table, body.logprobs or 0))
    return {
        "tokens": [_token(model, i) for i in ids[first:]],
        "text_offset": starts[first:],
        "token_logprobs": [logprob for logprob, _ in rows[first:]],
        "top_logprobs": [top for _, top in rows[first:]],
    }


def _rows(
    model: LocalModel, ids: Sequence[int], table: torch.Tensor, most: int
) -> Iterator[tuple[float | None, dict[str, float] | None]]:
    """Give each token's log-probability, and those of the likeliest in its place."""
    yield None, None
    for at, token in enumerate(ids[1:]):
        best = table[at].topk(most)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield table[at, token].item(), {_token(model, i): value for i, value in pairs}


def _token(model: LocalModel, i: int) -> str:
    text: str = model.tokenizer.decode([i], skip_special_tokens=False)
    return text


def chat(model: LocalModel, body: ChatBody) -> Answered:
    """Answer a conversation."""
    before, most = model.usage, body.max_completion_tokens or body.max_tokens
    (found,) = model.generate(
        [body.messages],
        stop=body.stops,
        max_tokens=max(1, most),
        temperature=body.temperature,
        seed=body.seed,
    )
    read = (model.usage - before).prompt_tokens
    reason = "length" if found.tokens == most else "stop"
    message = {"role": "assistant", "content": found.text}
    tokens = {"finish_reason": reason, "completion_tokens": found.tokens}
    choices = [{"index": 0, "message": message, **tokens}]
    said = _said("chat.completion", model, body.model, choices, (read, found.tokens))
    return Answered(said, read + found.tokens)


def _said(
    kind: str,
    model: LocalModel,
    name: str,
    choices: list[dict[str, Any]],
    tokens: tuple[int, int],
) -> dict[str, Any]:
    return {
        "id": f"{kind}-{time.monotonic_ns():x}",
        "object": kind,
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": model.fingerprint,
        "choices": choices,
        "usage": _usage(*tokens),
    }


def _usage(read: int, new: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}
