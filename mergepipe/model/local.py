"""A model in this process, asked through transformers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from mergepipe.errors import InputError, Problem
from mergepipe.model import Ability, Generation, Prompt, Score, Usage
from mergepipe.model.causal import CAUSAL
from mergepipe.model.classifier import CLASSIFIER, classes, classify
from mergepipe.model.loaded import Family, Loaded
from mergepipe.model.rows import Row, score, scored_tokens
from mergepipe.model.traces import TokenScores, Trace, joined
from mergepipe.model.writing import Request, write

__all__ = ["LocalModel", "spaces_moved"]


@dataclass(slots=True)
class LocalModel:
    """A loaded module and its tokenizer; `local_model` makes one of a checkpoint folder.

    Fulfils `Model`, and `Classifier` where it can "classify". What it cannot do is an InputError.
    """

    name: str
    fingerprint: str
    family: Family
    loaded: Loaded
    usage: Usage = field(default_factory=Usage)

    @property
    def module(self) -> Any:
        """The transformers module, in evaluation mode."""
        return self.loaded.module

    @property
    def local(self) -> LocalModel:
        """Itself: other models in this process are loaded when they are first asked."""
        return self

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without truncation and padding."""
        return self.loaded.tokenizer

    @property
    def abilities(self) -> frozenset[Ability]:
        """See `Model`."""
        family = self.family
        can: dict[Ability, bool] = {
            "loglikelihood": family.pairs is not None,
            "rolling": family.texts is not None,
            "generate": family.begin is not None,
            "chat": family.begin is not None and self.loaded.template is not None,
            "classify": family is CLASSIFIER,
            "weights": True,
        }
        return frozenset(ability for ability, able in can.items() if able)

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Classifier`."""
        self._need("classify")
        return classes(self.loaded)

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """See `Model`."""
        self._need("loglikelihood")
        assert self.family.pairs is not None, "as it said"
        moved = [spaces_moved(*request) for request in requests]
        rows = list(self.family.pairs(self.loaded, moved))
        return self._scored(rows, [continuation for _, continuation in moved])

    def loglikelihood_rolling(
        self, texts: Sequence[str], *, stride: int | None = None
    ) -> list[Score]:
        """See `Model`."""
        self._need("rolling")
        assert self.family.texts is not None, "as it said"
        return self._scored(list(self.family.texts(self.loaded, texts, stride)), texts)

    def trace(self, requests: Sequence[tuple[str, str]]) -> list[Trace]:
        """See `Traceable`."""
        moved = [spaces_moved(*request) for request in requests]
        whole = [context + continuation for context, continuation in moved]
        sizes = [len(ids) for ids in self.loaded.encode(whole)]
        for size in sizes:
            self.loaded.check_length(size, "a context and its continuation")
        scored = self.loaded.encode([context for context, _ in moved])
        return self._traced(whole, [len(ids) for ids in scored], None)

    def trace_texts(self, texts: Sequence[str], *, stride: int | None = None) -> list[Trace]:
        """See `Traceable`."""
        return self._traced(texts, [0] * len(texts), stride)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        """See `Model`."""
        self._need("generate")
        requests = self.requests(prompts, max_tokens)
        began = time.perf_counter()
        written = write(
            self.loaded,
            self.family,
            requests,
            stop=stop,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        read = sum(len(request.ids) for request in requests)
        self._used(len(requests), read, sum(one.tokens for one in written), began)
        return written

    def requests(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Request]:
        """Give the ids of each prompt: a conversation's are what its template makes of it.

        Raises
        ------
        InputError
            if one is too long, or a conversation and there is no template.

        """
        assert self.family.prompt is not None, "as it said"
        assert self.family.needed is not None, "as it said"
        texts = [self._text(prompt) for prompt in prompts]
        requests = []
        for prompt, text, ids in zip(prompts, texts, self.loaded.encode(texts), strict=True):
            whole = self.family.prompt(self.loaded, ids) if isinstance(prompt, str) else ids
            needed = self.family.needed(len(whole), max_tokens)
            self.loaded.check_length(needed, "a prompt and its new tokens")
            requests.append(Request(text, whole))
        return requests

    def lossy(self, texts: Sequence[str]) -> list[bool]:
        """See `mergepipe.evaluate.lossy.Expressing`."""
        return self.loaded.lossy(texts)

    def classify(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """See `Classifier`."""
        self._need("classify")
        special = self.loaded.special
        rows = [
            Row(index, (*special.before, *ids, *special.after))
            for index, ids in enumerate(self.loaded.encode(texts))
        ]
        for row in rows:
            self.loaded.check_length(row.tokens, "a text and its special tokens")
        began = time.perf_counter()
        found = classify(self.loaded, rows)
        self._used(len(rows), sum(row.tokens for row in rows), 0, began)
        return found

    def _need(self, ability: Ability) -> None:
        if ability not in self.abilities:
            template = " without a chat template" if ability == "chat" else ""
            what = f"{self.family.what}{template} has no answer to '{ability}'"
            raise InputError(Problem(self.name, what))

    def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        self._need("chat")
        assert self.loaded.template is not None, "as it said"
        return self.loaded.template.render(prompt, self.name)

    def _scored(self, rows: Sequence[Row], texts: Sequence[str]) -> list[Score]:
        began = time.perf_counter()
        loaded = self.loaded
        found = score(rows, texts, partial(self.family.logits, loaded), loaded.vocabulary)
        self._used(len(texts), sum(row.tokens for row in rows), 0, began)
        return found

    def _traced(
        self, texts: Sequence[str], firsts: Sequence[int], stride: int | None
    ) -> list[Trace]:
        """Trace whole texts; what was asked for begins at the tokens of index `firsts`."""
        self._need("rolling")
        assert self.family.texts is not None, "as it said"
        if self.family is not CAUSAL:
            raise InputError(Problem(self.name, f"{self.family.what} has no order of tokens"))
        began, loaded = time.perf_counter(), self.loaded
        rows = list(self.family.texts(loaded, texts, stride))
        found: dict[int, TokenScores] = {}
        logits = partial(self.family.logits, loaded)
        for row, chosen, greedy in scored_tokens(rows, logits, loaded.vocabulary):
            found[id(row)] = chosen.tolist(), greedy.tolist()
        parts: list[list[TokenScores]] = [[] for _ in texts]
        for row in rows:
            parts[row.index] += [found[id(row)]] if row.targets else []
        encoded = loaded.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        self._used(len(texts), sum(row.tokens for row in rows), 0, began)
        return [
            joined([start for start, _ in one.offsets], part, first, text)
            for one, part, first, text in zip(encoded, parts, firsts, texts, strict=True)
        ]

    def _used(self, requests: int, read: int, generated: int, began: float) -> None:
        self.usage += Usage(requests, read, generated, time.perf_counter() - began)


def spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    """Move the spaces that end a context to its continuation, as tokenizers need."""
    kept = context.rstrip(" ")
    return kept, context[len(kept) :] + continuation
