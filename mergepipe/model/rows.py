"""Requests as rows of token ids: of like length together, and scored from a model's logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergepipe.model import Score

__all__ = ["BATCH_LOGITS", "BATCH_ROWS", "Row", "batches", "score", "scored_tokens"]

BATCH_ROWS = 64
BATCH_LOGITS = 1 << 27  # entries: 512 MB in fp32, whatever the size of the vocabulary


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
    for row, chosen, likeliest in scored_tokens(rows, logits_of, vocabulary):
        logprobs[row.index] += chosen.double().sum().item()
        tokens[row.index] += len(row.targets)
        greedy[row.index] &= bool(likeliest.all())
    sizes = [len(text.encode()) for text in texts]
    return [Score(*values) for values in zip(logprobs, tokens, sizes, greedy, strict=True)]


def scored_tokens(
    rows: Iterable[Row], logits_of: Callable[[Sequence[Row]], Tensor], vocabulary: int
) -> Iterator[tuple[Row, Tensor, Tensor]]:
    """Give ln p of the tokens that each row asks for, fp32, and whether each was the likeliest.

    Rows come in another order than they were given.
    """
    asked = [row for row in rows if row.targets]
    for batch in batches(asked, BATCH_LOGITS // vocabulary):
        found = []
        with torch.inference_mode():
            for row, logits in zip(batch, logits_of(batch), strict=True):
                scores = logits[row.at : row.at + len(row.targets)].float().log_softmax(-1)
                targets = torch.tensor(row.targets, device=logits.device)
                chosen = scores.gather(-1, targets[:, None])[:, 0]
                found.append((row, chosen, scores.argmax(-1) == targets))
        yield from found


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
