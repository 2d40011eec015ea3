"""Scores of texts by a product of models, which needs their whole distributions each time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mergepipe.model import Score, Usage
from mergepipe.model.causal import CAUSAL
from mergepipe.model.local import LocalModel, spaces_moved
from mergepipe.model.rows import Row, score

__all__ = ["log_product", "product_scores"]


def log_product(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Give ln of Π_i p_i^w_i, which `log_softmax` makes a distribution, fp32 [..., token]."""
    logprobs = [one.float().log_softmax(-1) for one in logits]
    return torch.stack([w * one for w, one in zip(weights, logprobs, strict=True)]).sum(0)


def product_scores(
    models: Sequence[LocalModel],
    weights: Sequence[float],
    requests: Sequence[tuple[str, str, int | None]],
    *,
    rolling: bool,
) -> list[Score]:
    """Score (context, continuation, stride) by a product of models with one tokenizer."""
    began, first = time.perf_counter(), models[0].loaded
    assert CAUSAL.pairs is not None, "of causal models"
    assert CAUSAL.texts is not None, "of causal models"
    moved = [spaces_moved(context, text) for context, text, _ in requests]
    texts = [text for _, text in moved]
    if rolling:
        rows = list(CAUSAL.texts(first, texts, requests[0][2] if requests else None))
    else:
        rows = list(CAUSAL.pairs(first, moved))

    def logits(batch: Sequence[Row]) -> Tensor:
        return log_product([CAUSAL.logits(one.loaded, batch) for one in models], weights)

    found = score(rows, texts, logits, first.vocabulary)
    read = sum(row.tokens for row in rows)
    for model in models:
        model.usage += Usage(len(texts), read, 0, (time.perf_counter() - began) / len(models))
    return found
