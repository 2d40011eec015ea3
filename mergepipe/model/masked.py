"""Masked language models, scored by pseudo-log-likelihood.

Each scored token is hidden by [MASK] in turn and predicted from all others, on both sides:
PLL(W) = Σ_t ln p(w_t | W without w_t) (Salazar et al., "Masked Language Model Scoring", ACL 2020,
https://aclanthology.org/2020.acl-main.240, eq. 1). It is no probability of the text: values are
to be compared among masked models only. A text stands between the special tokens that its
tokenizer puts around it, [CLS] and [SEP], which are seen and not scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mergepipe.model.loaded import Family, Loaded
from mergepipe.model.rows import Row
from mergepipe.model.windows import spans

__all__ = ["MASKED"]


def _pairs(loaded: Loaded, requests: Sequence[tuple[str, str]]) -> Iterator[Row]:
    starts = loaded.encode([context for context, _ in requests])
    texts = loaded.encode([context + continuation for context, continuation in requests])
    for index, (ids, context) in enumerate(zip(texts, starts, strict=True)):
        loaded.check_length(len(ids) + _wrapping(loaded), "a context and its continuation")
        yield from _rows(loaded, index, ids, len(context))


def _texts(loaded: Loaded, texts: Sequence[str], stride: int | None) -> Iterator[Row]:
    for index, ids in enumerate(loaded.encode(texts)):
        for begin, start, end in spans(len(ids), loaded.max_length - _wrapping(loaded), stride):
            yield from _rows(loaded, index, ids[begin:end], start - begin)


def _rows(loaded: Loaded, index: int, ids: Sequence[int], start: int) -> Iterator[Row]:
    """One row for each id from `start` on, all of the same ids: `at` is the one that is hidden."""
    special = loaded.special
    seen = (*special.before, *ids, *special.after)
    for at in range(len(special.before) + start, len(special.before) + len(ids)):
        yield Row(index, seen, at, (seen[at],))


def _wrapping(loaded: Loaded) -> int:
    return len(loaded.special.before) + len(loaded.special.after)


def _logits(loaded: Loaded, rows: Sequence[Row]) -> Tensor:
    ids, mask = loaded.padded([row.ids for row in rows])
    assert loaded.special.mask is not None, "a masked model is not loaded without one"
    hidden = torch.tensor([[row.at] for row in rows], device=ids.device)
    ids.scatter_(1, hidden, loaded.special.mask)
    logits: Tensor = loaded.module(input_ids=ids, attention_mask=mask).logits
    return logits


MASKED = Family(
    what="a masked language model",
    auto="AutoModelForMaskedLM",
    logits=_logits,
    pairs=_pairs,
    texts=_texts,
)
