"""A causal language model in this process, asked through transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mergepipe.errors import InputError, Problem
from mergepipe.model import Generation, Score

__all__ = ["LocalModel", "rolling_windows"]

_BATCH_ROWS = 64
_BATCH_LOGITS = 1 << 27  # entries: 512 MB in fp32, whatever the size of the vocabulary


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A loaded module and its tokenizer; `local_model` makes one of a checkpoint folder."""

    name: str
    module: Any  # a transformers PreTrainedModel: its forward and generate are untyped
    tokenizer: Tokenizer
    prefix: int
    ends: frozenset[int]
    max_length: int

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """See `Model`."""
        contexts = [context.rstrip(" ") for context, _ in requests]
        texts = [context + continuation for context, continuation in requests]
        starts = [len(ids) for ids in self._encode(contexts)]
        windows = [
            _Window(index, [self.prefix, *ids], len(ids) - start)
            for index, (ids, start) in enumerate(zip(self._encode(texts), starts, strict=True))
        ]
        for window in windows:
            self._check_length(len(window.ids) - 1, "a context and its continuation")
        scored = [text[len(context) :] for text, context in zip(texts, contexts, strict=True)]
        return self._score(windows, scored)

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Score]:
        """See `Model`."""
        windows = [
            _Window(index, ids, scored)
            for index, text_ids in enumerate(self._encode(texts))
            for ids, scored in rolling_windows(text_ids, self.prefix, self.max_length)
        ]
        return self._score(windows, texts)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        """See `Model`."""
        encoded = [[self.prefix, *ids] for ids in self._encode(prompts)]
        for ids in encoded:
            self._check_length(len(ids) + max_tokens, "a prompt and its new tokens")
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        written: dict[int, Generation] = {}
        for start in range(0, len(order), _BATCH_ROWS):
            rows = order[start : start + _BATCH_ROWS]
            draws = [_sampler([prompts[i] for i in rows], temperature, seed)] if temperature else []
            texts = self._continue([encoded[i] for i in rows], stop, max_tokens, draws)
            written |= zip(rows, texts, strict=True)
        return [written[i] for i in range(len(prompts))]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = self.module.get_input_embeddings().weight.shape[0]
        if max((i for encoding in encodings for i in encoding.ids), default=0) >= rows:
            what = f"its tokenizer gives ids beyond its {rows} embedding rows"
            raise InputError(Problem(self.name, what))
        return [encoding.ids for encoding in encodings]

    def _check_length(self, tokens: int, what: str) -> None:
        if tokens > self.max_length:
            what = f"{what} are {tokens} tokens, but the model takes {self.max_length}"
            raise InputError(Problem(self.name, what))

    def _score(self, windows: Sequence[_Window], texts: Sequence[str]) -> list[Score]:
        logprobs, tokens, greedy = [0.0] * len(texts), [0] * len(texts), [True] * len(texts)
        room = _BATCH_LOGITS // self.module.config.get_text_config().vocab_size
        for batch in _batches(windows, room):
            for window, logits in zip(batch, self._logits(batch), strict=True):
                last = len(window.ids) - 1
                scores = logits[last - window.scored : last].float().log_softmax(-1)
                targets = torch.tensor(window.ids[last + 1 - window.scored :], device=logits.device)
                chosen = scores.gather(-1, targets[:, None])
                logprobs[window.index] += chosen.double().sum().item()
                tokens[window.index] += window.scored
                greedy[window.index] &= bool((scores.argmax(-1) == targets).all())
        sizes = [len(text.encode()) for text in texts]
        return [Score(*values) for values in zip(logprobs, tokens, sizes, greedy, strict=True)]

    def _logits(self, batch: Sequence[_Window]) -> Tensor:
        """Logits after each id but the last; padding on the right, unseen by a causal model."""
        ids, mask = self._padded([window.ids[:-1] for window in batch], left=False)
        with torch.inference_mode():
            logits: Tensor = self.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits

    def _padded(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.prefix)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(len(row))
            ids[i, place] = torch.tensor(row)
            mask[i, place] = 1
        return ids.to(self.module.device), mask.to(self.module.device)

    def _continue(
        self,
        prompts: Sequence[Sequence[int]],
        stop: Sequence[str],
        max_tokens: int,
        draws: list[Callable[[Tensor, Tensor], Tensor]],
    ) -> list[Generation]:
        ids, mask = self._padded(prompts, left=True)
        texts: dict[int, Generation] = {}

        def finished(sequences: Tensor, *_: object, **__: object) -> Tensor:
            for i, row in enumerate(sequences[:, ids.shape[1] :].tolist()):
                if i not in texts:
                    text, ended = self._cut(row, stop)
                    if ended or len(row) == max_tokens:
                        texts[i] = Generation(text, len(row))
            return torch.tensor([i in texts for i in range(len(prompts))], device=ids.device)

        self.module.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=self.prefix,
            logits_processor=draws,
            stopping_criteria=[finished],
        )
        return [texts[i] for i in range(len(prompts))]

    def _cut(self, ids: list[int], stop: Sequence[str]) -> tuple[str, bool]:
        """Decode `ids` up to EOS or a stop string; say whether there was one."""
        ended = ids[-1] in self.ends
        text: str = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
        cuts = [text.find(mark) for mark in stop if mark in text]
        return text[: min(cuts, default=len(text))], ended or bool(cuts)


@dataclass(frozen=True, slots=True)
class _Window:
    """Token ids of which the last `scored` are scored, for the request at `index`."""

    index: int
    ids: Sequence[int]
    scored: int


def rolling_windows(
    ids: Sequence[int], prefix: int, max_length: int
) -> Iterator[tuple[Sequence[int], int]]:
    """Disjoint windows of a text's ids: each the ids, and how many of the last are scored.

    >>> list(rolling_windows([1, 2, 3, 4, 5], prefix=0, max_length=3))
    [([0, 1, 2, 3], 3), ([2, 3, 4, 5], 2)]
    """
    led = [prefix, *ids]
    for start in range(0, len(ids), max_length):
        end = min(start + max_length, len(ids))
        yield led[end - max_length if start else 0 : end + 1], end - start


def _batches(windows: Sequence[_Window], tokens: int) -> Iterator[list[_Window]]:
    """Windows of like length together: at most `tokens` with their padding."""
    batch: list[_Window] = []
    for window in sorted(windows, key=lambda window: -len(window.ids)):
        full = len(batch) == _BATCH_ROWS or (
            bool(batch) and (len(batch) + 1) * len(batch[0].ids) > tokens
        )
        if full:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _sampler(
    prompts: Sequence[str], temperature: float, seed: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Logits whose argmax is a draw at `temperature`: logits / T - ln E, E ~ Exp(1) (Gumbel-max).

    Each prompt has its own generator, so that its draws do not depend on the batch.
    """
    digests = [hashlib.sha256(f"{seed}:{prompt}".encode()).digest() for prompt in prompts]
    generators = [torch.Generator().manual_seed(int.from_bytes(d[:7], "big")) for d in digests]

    def perturbed(_: Tensor, logits: Tensor) -> Tensor:
        draws = [torch.empty(logits.shape[-1]).exponential_(generator=g) for g in generators]
        return logits.float() / temperature - torch.stack(draws).log().to(logits.device)

    return perturbed
