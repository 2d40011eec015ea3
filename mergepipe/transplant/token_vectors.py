"""Vectors of words -> vectors of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mergepipe.tokenizer.encoding import encoder
from mergepipe.tokenizer.vocabulary import Vocabulary
from mergepipe.transplant.combining import text_of
from mergepipe.transplant.task import Ids
from mergepipe.transplant.vectors import Words

__all__ = ["bare_and_spaced", "token_vectors"]

_BATCH = 10_000  # words


def bare_and_spaced(word: str) -> tuple[str, ...]:
    """Give the forms of a word that texts have: alone, and after a space."""
    return word, f" {word}"


def token_vectors(
    vocabulary: Vocabulary,
    ids: Ids,
    source: Words,
    forms: Callable[[str], Sequence[str]] = bare_and_spaced,
) -> Tensor:
    """Give vectors of tokens, fp32 [len(ids), dimensions]; zeros where there is none.

    Where the source has a vector for any text: that of the token's text without spaces around it.
    Else the mean, by counts, of the words whose tokens in one of their forms contain the token, a
    word once for each such form.
    """
    if source.embed is None:
        return _by_words(vocabulary, source, forms)[torch.from_numpy(ids)]
    texts = [(text_of(vocabulary.tokens[int(number)]) or "").strip() for number in ids]
    known = [row for row, text in enumerate(texts) if text]
    found = source.embed([texts[row] for row in known])
    rows = torch.zeros(len(ids), found.shape[1])
    rows[known] = found
    return rows


def _by_words(
    vocabulary: Vocabulary, source: Words, forms: Callable[[str], Sequence[str]]
) -> Tensor:
    tokenizer = encoder(vocabulary)
    sums = torch.zeros(vocabulary.rows, source.table.shape[1], dtype=torch.float64)
    total = torch.zeros(vocabulary.rows, dtype=torch.float64)
    for start in range(0, len(source.words), _BATCH):
        part = enumerate(source.words[start : start + _BATCH], start)
        batch = [(text, row) for row, word in part for text in forms(word)]
        encodings = tokenizer.encode_batch([text for text, _ in batch], add_special_tokens=False)
        pairs = [
            (token, row)
            for encoding, (_, row) in zip(encodings, batch, strict=True)
            for token in sorted(set(encoding.ids))
        ]
        tokens, rows = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        weights = source.counts[rows].double()
        sums.index_add_(0, tokens, source.table[rows].double() * weights[:, None])
        total.index_add_(0, tokens, weights)
    return torch.where(total[:, None] > 0, sums / total[:, None], 0).float()
