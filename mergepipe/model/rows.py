"""Requests as rows of token ids: of like length together, and scored from a model's logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergepipe.model import Score

__all__ = ["BATCH_ROWS", "Row", "batches", "score"]

BATCH_ROWS = 64
_BATCH_LOGITS = 1 << 27  # entries: 512 MB in fp32, whatever the size of the vocabulary


@dataclass(frozen=True, slots=True)
class Row:
    """What one forward pass sees for the request at `index`, and the tokens it is asked for.

    The logits at position `at` and those that follow are held against `targets`. `source` is what
    an encoder sees, where `ids` are a decoder's.
    """

    index: int
    ids: Sequence[int]
    at: int = 0
    targets: Sequence[int] = ()
    source: Sequence[int] = ()

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return len(self.ids) + len(self.source)


def score(
    rows: Iterable[Row],
    texts: Sequence[str],
    logits_of: Callable[[Sequence[Row]], Tensor],
    vocabulary: int,
) -> list[Score]:
    """Sum up what the rows say of the scored texts; log-softmax in fp32, sums in fp64."""
    logprobs, tokens, greedy = [0.0] * len(texts), [0] * len(texts), [True] * len(texts)
    asked = [row for row in rows if row.targets]
    for batch in batches(asked, _BATCH_LOGITS // vocabulary):
        with torch.inference_mode():
            for row, logits in zip(batch, logits_of(batch), strict=True):
                count = len(row.targets)
                scores = logits[row.at : row.at + count].float().log_softmax(-1)
                targets = torch.tensor(row.targets, device=logits.device)
                chosen = scores.gather(-1, targets[:, None])
                logprobs[row.index] += chosen.double().sum().item()
                tokens[row.index] += count
                greedy[row.index] &= bool((scores.argmax(-1) == targets).all())
    sizes = [len(text.encode()) for text in texts]
    return [Score(*values) for values in zip(logprobs, tokens, sizes, greedy, strict=True)]


def batches(rows: Iterable[Row], room: int) -> Iterator[list[Row]]:
    """Rows of like length together, with at most `room` ids with their padding."""
    batch: list[Row] = []
    widest = 0
    for row in sorted(rows, key=lambda row: (-len(row.source), -len(row.ids))):
        widest = max(widest, len(row.ids))
        if len(batch) == BATCH_ROWS or (batch and (len(batch) + 1) * widest > room):
            yield batch
            batch, widest = [], len(row.ids)
        batch.append(row)
    if batch:
        yield batch
