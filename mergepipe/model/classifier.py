"""Models with a classification head: a text in, a number for each class out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergepipe.model.loaded import Family, Loaded
from mergepipe.model.rows import Row, batches

__all__ = ["CLASSIFIER", "classes", "classify"]

_BATCH_TOKENS = 1 << 14


def classify(loaded: Loaded, rows: Sequence[Row]) -> list[tuple[float, ...]]:
    """Give the logits of each text's classes, in the order of the texts."""
    found: dict[int, tuple[float, ...]] = {}
    with torch.inference_mode():
        for batch in batches(rows, _BATCH_TOKENS):
            for row, logits in zip(batch, _logits(loaded, batch).float().tolist(), strict=True):
                found[row.index] = tuple(logits)
    return [found[row.index] for row in rows]


def classes(loaded: Loaded) -> tuple[str, ...]:
    """Give the names of the classes, in the order of their logits."""
    named = loaded.module.config.id2label
    return tuple(str(named[i]) for i in sorted(named))


def _logits(loaded: Loaded, rows: Sequence[Row]) -> Tensor:
    ids, mask = loaded.padded([row.ids for row in rows])
    logits: Tensor = loaded.module(input_ids=ids, attention_mask=mask).logits
    return logits


CLASSIFIER = Family(what="a classifier", auto="AutoModelForSequenceClassification", logits=_logits)
