"""Text that a model writes: greedy or sampled, several prompts at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergepipe.model import Generation
from mergepipe.model.loaded import Family, Loaded
from mergepipe.model.rows import BATCH_ROWS

__all__ = ["Limits", "Request", "ended", "sampler", "write"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt as text, which its draws depend on, and as all its ids."""

    text: str
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a text ends: at a stop string, or after so many tokens."""

    stop: Sequence[str]
    tokens: int


def write(
    loaded: Loaded,
    family: Family,
    requests: Sequence[Request],
    *,
    stop: Sequence[str],
    max_tokens: int,
    temperature: float,
    seed: int,
) -> list[Generation]:
    """Continue each prompt; those of like length together."""
    assert family.begin is not None, "only models that can write are asked to"
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].ids))
    written: dict[int, Generation] = {}
    for start in range(0, len(order), BATCH_ROWS):
        rows = order[start : start + BATCH_ROWS]
        batch = [requests[i] for i in rows]
        draws = [sampler([one.text for one in batch], temperature, seed)] if temperature else []
        begun = family.begin(loaded, [one.ids for one in batch])
        texts = _continue(loaded, begun, Limits(stop, max_tokens), draws)
        written |= zip(rows, texts, strict=True)
    return [written[i] for i in range(len(requests))]


def _continue(
    loaded: Loaded,
    begun: tuple[Mapping[str, Any], int],
    limits: Limits,
    draws: list[Callable[[Tensor, Tensor], Tensor]],
) -> list[Generation]:
    inputs, first = begun
    count = len(inputs["inputs"])
    texts: dict[int, Generation] = {}

    def finished(sequences: Tensor, *_: object, **__: object) -> Tensor:
        for i, row in enumerate(sequences[:, first:].tolist()):
            text = ended(loaded, row, limits) if i not in texts else None
            if text is not None:
                texts[i] = text
        return torch.tensor([i in texts for i in range(count)], device=sequences.device)

    loaded.module.generate(
        **inputs,
        max_new_tokens=limits.tokens,
        do_sample=False,
        pad_token_id=loaded.special.pad,
        logits_processor=draws,
        stopping_criteria=[finished],
    )
    return [texts[i] for i in range(count)]


def ended(loaded: Loaded, ids: list[int], limits: Limits) -> Generation | None:
    """Give what was written up to EOS or a stop string; None if it goes on."""
    at_end = ids[-1] in loaded.special.ends
    text: str = loaded.tokenizer.decode(ids[:-1] if at_end else ids, skip_special_tokens=False)
    cuts = [text.find(mark) for mark in limits.stop if mark in text]
    if not (at_end or cuts or len(ids) == limits.tokens):
        return None
    return Generation(text[: min(cuts, default=len(text))], len(ids))


def sampler(
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
