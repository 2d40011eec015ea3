"""Cosine similarity of many vectors with many, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["nearest", "similarities", "unit"]

_ELEMENTS = 1 << 24  # of the similarity matrix that are held at once
_KEYS = 8192  # keys that are held in fp64 at once


def unit(vectors: Tensor) -> Tensor:
    """Divide rows by their norms: fp32; rows of zeros, and of what is not finite, become zeros."""
    wide = vectors.double()
    wide = torch.where(wide.isfinite().all(1, keepdim=True), wide, 0)
    norms = wide.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, wide / norms, 0).float()


def similarities(queries: Tensor, keys: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Give the products of queries [n, d] with all keys [m, d]: first query, fp32 [block, m].

    They are summed in fp64, so that what a query gets does not depend on those beside it.
    """
    size = max(1, _ELEMENTS // max(1, len(keys)))
    for start in range(0, len(queries), size):
        wide = queries[start : start + size].double()
        parts = [(wide @ block.double().T).float() for block in torch.split(keys, _KEYS)]
        yield start, torch.cat(parts, 1)


def nearest(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Give the k largest similarities of each query, descending, and their keys: [n, min(k, m)].

    Of equal ones, the key of lowest index comes first.
    """
    k = min(k, len(keys))
    values = torch.zeros(len(queries), k, device=queries.device)
    index = torch.arange(k, device=queries.device).repeat(len(queries), 1)
    # To zeros all keys are equally near; sought, they would all be candidates.
    asked = queries.any(1).nonzero()[:, 0]
    for start, block in similarities(queries[asked], keys) if k else ():
        rows = asked[start : start + len(block)]
        values[rows], index[rows] = _largest(block, k)
    return values, index


def _largest(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    last = block.topk(k, 1).values[:, -1:]
    rows, columns = (block >= last).nonzero().unbind(1)  # ascending: rows, then columns
    values = block[rows, columns]
    order = values.sort(descending=True, stable=True).indices
    order = order[rows[order].sort(stable=True).indices]
    counts = torch.bincount(rows, minlength=len(block))
    first = counts.cumsum(0) - counts
    chosen = order[first[:, None] + torch.arange(k, device=block.device)]
    return values[chosen], columns[chosen]
