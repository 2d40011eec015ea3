"""Weights of the nearest tokens: a softmax of their similarity."""

from __future__ import annotations

import torch
from torch import Tensor

from mergepipe.transplant.combining import Weigh
from mergepipe.transplant.nearest import nearest
from mergepipe.transplant.task import Ids, Task

__all__ = ["softmax_of_nearest", "tell_lacking"]


def softmax_of_nearest(
    task: Task, queries: Tensor, known: tuple[Tensor, Ids], k: int, temperature: float
) -> Weigh:
    """Weigh the k nearest base tokens by softmax(cos / temperature).

    `queries` [missing, d] and the keys of `known` [n, d] are unit vectors, or zeros where a token
    has none; beside the keys stand their ids.
    """
    keys, ids = known
    has = keys.any(1)
    keys, key_ids = keys[has].to(task.device), torch.from_numpy(ids)[has].to(task.device)
    queries = queries.to(task.device)
    tell_lacking(task, queries)

    def weigh(positions: Ids) -> tuple[Tensor, Tensor]:
        asked = queries[torch.from_numpy(positions).to(task.device)]
        similarity, index = nearest(asked, keys, k)
        if not len(keys):
            return index.new_full((len(asked), 1), -1), asked.new_zeros(len(asked), 1)
        weights = (similarity.double() / temperature).softmax(1).float()
        none = ~asked.any(1, keepdim=True)
        return key_ids[index].masked_fill(none, -1), weights.masked_fill(none, 0)

    return weigh


def tell_lacking(task: Task, queries: Tensor) -> None:
    """Say how many missing tokens have no vector."""
    lacking = int((~queries.any(1)).sum())
    if lacking:
        task.tell(f"{lacking} of {len(queries)} tokens to be made have no vector")
