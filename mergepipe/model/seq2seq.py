"""Encoder-decoder models: a context goes to the encoder, its continuation to the decoder.

The encoder sees what the tokenizer makes of the context, with its special tokens. The decoder
begins with the model's own start tokens, which are not scored; no EOS is scored either. A text by
itself is the decoder's, while the encoder sees an empty text; a text of more tokens than the
decoder takes is scored in windows that each begin with the start tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergepipe.model.loaded import Family, Loaded
from mergepipe.model.rows import Row
from mergepipe.model.windows import spans

__all__ = ["SEQ2SEQ"]


def _pairs(loaded: Loaded, requests: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """Context and continuation are encoded each by itself."""
    contexts = loaded.encode([context for context, _ in requests])
    continuations = loaded.encode([continuation for _, continuation in requests])
    start = loaded.special.start
    for index, (context, ids) in enumerate(zip(contexts, continuations, strict=True)):
        source = _prompt(loaded, context)
        loaded.check_length(len(source), "a context and its special tokens")
        loaded.check_length(len(start) + len(ids) - 1, "a continuation and its start")
        yield Row(index, (*start, *ids[:-1]), len(start) - 1, ids, source)


def _texts(loaded: Loaded, texts: Sequence[str], stride: int | None) -> Iterator[Row]:
    start, nothing = loaded.special.start, _prompt(loaded, [])
    for index, ids in enumerate(loaded.encode(texts)):
        for begin, scored, end in spans(len(ids), loaded.max_length - len(start) + 1, stride):
            at = len(start) - 1 + scored - begin
            yield Row(index, (*start, *ids[begin : end - 1]), at, ids[scored:end], nothing)


def _logits(loaded: Loaded, rows: Sequence[Row]) -> Tensor:
    sources, mask = loaded.padded([row.source for row in rows])
    ids, _ = loaded.padded([row.ids for row in rows])  # on the right, where nothing looks
    logits: Tensor = loaded.module(
        input_ids=sources, attention_mask=mask, decoder_input_ids=ids, use_cache=False
    ).logits
    return logits


def _prompt(loaded: Loaded, ids: list[int]) -> list[int]:
    return [*loaded.special.before, *ids, *loaded.special.after]


def _begin(loaded: Loaded, prompts: Sequence[Sequence[int]]) -> tuple[Mapping[str, Any], int]:
    # On the right: positions of an encoder are counted from the left.
    ids, mask = loaded.padded(prompts)
    start = loaded.special.start
    inputs = {
        "inputs": ids,
        "attention_mask": mask,
        "decoder_input_ids": torch.tensor([start] * len(prompts), device=ids.device),
        "decoder_start_token_id": start[0],
    }
    return inputs, len(start)


SEQ2SEQ = Family(
    what="an encoder-decoder model",
    auto="AutoModelForSeq2SeqLM",
    logits=_logits,
    pairs=_pairs,
    texts=_texts,
    prompt=_prompt,
    needed=max,
    begin=_begin,
)
