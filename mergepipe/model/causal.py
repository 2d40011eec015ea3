"""Causal language models: each token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mergepipe.model.loaded import Family, Loaded
from mergepipe.model.rows import Row
from mergepipe.model.windows import spans

__all__ = ["CAUSAL"]


def _pairs(loaded: Loaded, requests: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """Context and continuation are encoded together; the last ids are the continuation's."""
    starts = loaded.encode([context for context, _ in requests])
    texts = loaded.encode([context + continuation for context, continuation in requests])
    for index, (ids, context) in enumerate(zip(texts, starts, strict=True)):
        loaded.check_length(len(ids), "a context and its continuation")
        yield _row(index, [_prefix(loaded), *ids], len(ids) - len(context))


def _texts(loaded: Loaded, texts: Sequence[str], stride: int | None) -> Iterator[Row]:
    for index, ids in enumerate(loaded.encode(texts)):
        led = [_prefix(loaded), *ids]
        for begin, start, end in spans(len(ids), loaded.max_length, stride):
            yield _row(index, led[begin : end + 1], end - start)


def _row(index: int, ids: Sequence[int], scored: int) -> Row:
    """A row that scores the last ids, each from those before it."""
    at = len(ids) - 1 - scored
    return Row(index, ids[:-1], at, ids[at + 1 :])


def _logits(loaded: Loaded, rows: Sequence[Row]) -> Tensor:
    """Padding on the right is not seen by a causal model."""
    ids, mask = loaded.padded([row.ids for row in rows])
    logits: Tensor = loaded.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits


def _prompt(loaded: Loaded, ids: list[int]) -> list[int]:
    return [_prefix(loaded), *ids]


def _begin(loaded: Loaded, prompts: Sequence[Sequence[int]]) -> tuple[Mapping[str, Any], int]:
    ids, mask = loaded.padded(prompts, left=True)
    return {"inputs": ids, "attention_mask": mask}, ids.shape[1]


def _prefix(loaded: Loaded) -> int:
    prefix = loaded.special.prefix
    assert prefix is not None, "a causal model is not loaded without one"
    return prefix


CAUSAL = Family(
    what="a causal language model",
    auto="AutoModelForCausalLM",
    logits=_logits,
    pairs=_pairs,
    texts=_texts,
    prompt=_prompt,
    needed=lambda prompt, new: prompt + new,
    begin=_begin,
)
