"""Text that several models in this process write together, token by token or byte by byte."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergepipe.errors import InputError, Problem
from mergepipe.model import Generation, Prompt, Usage
from mergepipe.model.byte_models import ByteTraced
from mergepipe.model.local import LocalModel
from mergepipe.model.mixture_scores import log_product
from mergepipe.model.rows import BATCH_LOGITS, BATCH_ROWS
from mergepipe.model.switching import Spans, turns_after
from mergepipe.model.traces import Known
from mergepipe.model.writing import Limits, Request, ended, sampler

__all__ = ["Drawing", "write", "write_bytes"]

_END = 256  # behind the bytes


@dataclass(frozen=True, slots=True)
class Drawing:
    """How texts are written: see `Model.generate`."""

    stop: tuple[str, ...]
    max_tokens: int
    temperature: float
    seed: int


def write(
    models: Sequence[LocalModel],
    weights: Sequence[float],
    switch: float | None,
    prompts: Sequence[Prompt],
    drawing: Drawing,
) -> list[Generation]:
    """Continue each prompt by models with one tokenizer, which take turns.

    Without a `switch` their product writes. A conversation is to each what its template makes of
    it. Prompts of one length are continued together.
    """
    began = time.perf_counter()
    asked = [model.requests(prompts, drawing.max_tokens) for model in models]
    groups: dict[tuple[int, ...], list[int]] = {}
    for at, columns in enumerate(zip(*asked, strict=True)):
        groups.setdefault(tuple(len(one.ids) for one in columns), []).append(at)
    written: dict[int, Generation] = {}
    vocabulary = models[0].loaded.vocabulary
    for lengths, members in groups.items():
        size = min(BATCH_ROWS, max(1, BATCH_LOGITS // (max(lengths) * vocabulary)))
        for start in range(0, len(members), size):
            rows = members[start : start + size]
            batch = [[column[at] for at in rows] for column in asked]
            texts = _Writers(models, weights, switch, batch).write(drawing)
            written |= zip(rows, texts, strict=True)
    for model, column in zip(models, asked, strict=True):
        read, new = sum(len(o.ids) for o in column), sum(o.tokens for o in written.values())
        seconds = (time.perf_counter() - began) / len(models)
        model.usage += Usage(len(prompts), read, new, seconds)
    return [written[at] for at in range(len(prompts))]


class _Writers:
    """Models that go on with the same batch of prompts, each with what it has read."""

    def __init__(
        self,
        models: Sequence[LocalModel],
        weights: Sequence[float],
        switch: float | None,
        batch: Sequence[Sequence[Request]],
    ) -> None:
        self.models, self.weights, self.switch, self.batch = models, weights, switch, batch
        self.read: list[Any] = [None] * len(models)
        self.device = models[0].module.device
        self.turns = torch.tensor(weights, device=self.device).repeat(len(batch[0]), 1)

    def write(self, drawing: Drawing) -> list[Generation]:
        """Continue until all texts have ended."""
        texts = [one.text for one in self.batch[0]]
        draw = sampler(texts, drawing.temperature, drawing.seed) if drawing.temperature else None
        limits, loaded = Limits(drawing.stop, drawing.max_tokens), self.models[0].loaded
        logprobs = self._begun()
        ids: list[list[int]] = [[] for _ in texts]
        found: dict[int, Generation] = {}
        while len(found) < len(texts):
            mixed = self._mixed(logprobs)
            chosen = (mixed if draw is None else draw(mixed, mixed)).argmax(-1)
            for at, number in enumerate(chosen.tolist()):
                ids[at].append(number)
                text = ended(loaded, ids[at], limits) if at not in found else None
                if text is not None:
                    found[at] = text
            self._passed(logprobs, chosen)
            if len(found) < len(texts):
                logprobs = [self._step(m, chosen[:, None]) for m in range(len(self.models))]
                logprobs = [one[:, -1] for one in logprobs]
        return [found[at] for at in range(len(texts))]

    def _begun(self) -> list[Tensor]:
        """Read the prompts; whose turn it is, they tell if they are the same to all."""
        prompts = [torch.tensor([list(one.ids) for one in column]) for column in self.batch]
        tables = [self._step(m, ids.to(self.device)) for m, ids in enumerate(prompts)]
        same = all(torch.equal(ids, prompts[0]) for ids in prompts)
        if self.switch is not None and self.switch < 1 and same:
            targets = prompts[0][:, 1:, None].to(self.device)
            scores = torch.stack([t[:, :-1].gather(-1, targets)[..., 0] for t in tables], -1)
            for at, one in enumerate(scores.double().cpu().numpy()):
                spans = Spans(one, np.zeros_like(one), 0, is_greedy=False)
                self.turns[at] = torch.tensor(turns_after(spans, self.weights, self.switch))
        return [table[:, -1] for table in tables]

    def _step(self, member: int, ids: Tensor) -> Tensor:
        """Give ln p of what follows each of the ids, fp32 [row, position, token]."""
        with torch.inference_mode():
            out = self.models[member].module(
                input_ids=ids, past_key_values=self.read[member], use_cache=True
            )
        self.read[member] = out.past_key_values
        table: Tensor = out.logits.float().log_softmax(-1)
        return table

    def _mixed(self, logprobs: Sequence[Tensor]) -> Tensor:
        if self.switch is None:
            return log_product(logprobs, self.weights).log_softmax(-1)
        stacked = torch.stack(list(logprobs), -1) + self.turns.log()[:, None]
        return stacked.logsumexp(-1)

    def _passed(self, logprobs: Sequence[Tensor], chosen: Tensor) -> None:
        """Give the turn on, after a token of each row."""
        if self.switch is None:
            return
        said = torch.stack([one.gather(-1, chosen[:, None])[:, 0] for one in logprobs], -1)
        after = (self.turns.log() + said).softmax(-1)
        drawn = torch.tensor(self.weights, device=self.device)
        self.turns = (1 - self.switch) * after + self.switch * drawn


def write_bytes(
    models: Sequence[Known],
    weights: Sequence[float],
    switch: float,
    prompts: Sequence[Prompt],
    drawing: Drawing,
) -> list[Generation]:
    """Continue each text byte by byte; `max_tokens` are those of the first model's tokenizer."""
    here = [one for one in models if isinstance(one, ByteTraced)]
    found = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            what = "conversations are not continued byte by byte"
            raise InputError(Problem(models[0].name, what, "mix by `tokens` or `votes`"))
        found.append(_by_bytes(here, np.array(weights), switch, prompt, drawing))
    return found


def _by_bytes(
    models: Sequence[ByteTraced],
    weights: Any,
    switch: float,
    prompt: str,
    drawing: Drawing,
) -> Generation:
    text, written = prompt.encode(), b""
    turns = weights
    if switch < 1 and text:
        starts = np.stack([np.diff(one.by_bytes.logprobs_of_starts(text)) for one in models], -1)
        spans = Spans(starts, np.zeros_like(starts), 0, is_greedy=False)
        turns = np.array(turns_after(spans, weights.tolist(), switch))
    states = [one.by_bytes.state(text) for one in models]
    draw = _drawn(prompt, drawing)
    while True:
        ahead = np.stack([one.ahead() for one in states])
        ahead /= np.maximum(ahead.sum(-1, keepdims=True), np.finfo(float).tiny)
        mixed = turns @ ahead
        byte = draw(mixed)
        if byte == _END or not mixed.any():
            return Generation(written.decode(errors="replace"), _count(models[0], written))
        joint = turns * ahead[:, byte]
        turns = (1 - switch) * joint / joint.sum() + switch * weights
        written += bytes([byte])
        cut = _cut(models[0], written, drawing)
        if cut is not None:
            return cut
        states = [one.follow(byte) for one in states]


def _cut(model: ByteTraced, written: bytes, drawing: Drawing) -> Generation | None:
    """Give what was written if a stop string or a limit ends it."""
    try:
        text = written.decode()
    except UnicodeDecodeError:  # inside a character
        return None
    count = _count(model, written)
    cuts = [text.find(mark) for mark in drawing.stop if mark in text]
    if cuts:
        return Generation(text[: min(cuts)], count)
    # The last character has begun a token too many.
    return None if count <= drawing.max_tokens else Generation(text[:-1], drawing.max_tokens)


def _count(model: ByteTraced, written: bytes) -> int:
    return len(model.model.loaded.encode([written.decode(errors="replace")])[0])


def _drawn(prompt: str, drawing: Drawing) -> Callable[[Any], int]:
    """Give what chooses a byte: the likeliest, or a draw that depends on seed and prompt alone."""
    if not drawing.temperature:
        return lambda mixed: int(mixed.argmax())
    digest = hashlib.sha256(f"{drawing.seed}:{prompt}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def chosen(mixed: Any) -> int:
        with np.errstate(divide="ignore"):
            heat = np.log(mixed) / drawing.temperature
        return int((heat + generator.gumbel(size=len(mixed))).argmax())

    return chosen
