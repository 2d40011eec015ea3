"""Tables of embeddings on disk: rows read as they are asked for, those near each other at once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from mergepipe.checkpoint import Checkpoint, read_range, read_values
from mergepipe.transplant.task import Ids

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["StoredTable"]

_NEAR = 16  # rows between two that are wanted which are read rather than skipped
_RUN = 4096  # rows read at once
_NEAR_UPDATED = 128  # in a model with an adapter, which is multiplied in blocks


class StoredTable:
    """A matrix of a checkpoint, [rows, columns]: its adapter applied; rows in fp32 on `device`.

    A table of at most `most_bytes` as fp32 is kept in memory once it is read.
    """

    def __init__(
        self, checkpoint: Checkpoint, name: str, device: torch.device, most_bytes: int = 0
    ) -> None:
        stored = checkpoint.tensors[name]
        self.checkpoint, self.name, self.device = checkpoint, name, device
        self.rows, self.columns = stored.shape
        self._kept: Tensor | None = None
        self._keeps = 4 * self.rows * self.columns <= most_bytes

    def __getitem__(self, ids: Ids, /) -> Tensor:
        """Give the rows of these ids in fp32: [len(ids), columns]."""
        if self._keeps:
            if self._kept is None:
                self._kept = self._gather(np.arange(self.rows), as_stored=False)
            found = self._kept[torch.from_numpy(ids)]
        else:
            found = self._gather(ids, as_stored=False)
        return found.to(self.device)

    def stored(self, ids: Ids) -> Tensor:
        """Give the rows as they are stored, on the CPU; fp32 where an adapter changes them."""
        return self._gather(ids, as_stored=self.name not in self.checkpoint.low_rank)

    def _gather(self, ids: Ids, *, as_stored: bool) -> Tensor:
        updated = self.name in self.checkpoint.low_rank
        order = np.argsort(ids, kind="stable")
        wanted = ids[order]
        gaps = np.diff(wanted) > (_NEAR_UPDATED if updated else _NEAR)
        cuts = [0, *(np.flatnonzero(gaps) + 1).tolist(), len(wanted)]
        found: Tensor | None = None
        for start, stop in pairwise(cuts):
            for low in range(start, stop, _RUN):
                high = min(low + _RUN, stop)
                values = self._read(
                    int(wanted[low]), int(wanted[high - 1]) + 1, as_stored=as_stored
                )
                if found is None:
                    found = torch.empty(len(ids), self.columns, dtype=values.dtype)
                picked = torch.from_numpy(wanted[low:high] - wanted[low])
                found[torch.from_numpy(order[low:high])] = values[picked]
        return torch.empty(0, self.columns) if found is None else found

    def _read(self, first: int, stop: int, *, as_stored: bool) -> Tensor:
        start, end = first * self.columns, stop * self.columns
        if as_stored:
            values = read_range(self.checkpoint.tensors[self.name], start, end)
        else:
            values = read_values(self.checkpoint, self.name, start, end)
        return values.reshape(-1, self.columns)
