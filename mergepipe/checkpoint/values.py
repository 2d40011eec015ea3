"""Values of a checkpoint's tensors as fp32, with its adapter applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergepipe.checkpoint.opening import Checkpoint
from mergepipe.checkpoint.tensors import LowRank, Stored, read_range

if TYPE_CHECKING:
    import torch

# Updates are multiplied in blocks of rows that start at multiples of this, whatever range is
# asked for, so that the result does not depend on how a tensor is cut into ranges.
_BLOCK_ROWS = 128


def read_values(checkpoint: Checkpoint, name: str, start: int, stop: int) -> torch.Tensor:
    """Elements `start` to `stop` of the flattened tensor `name`: 1-D fp32, adapter applied.

    The update W + scale * (B @ A) is computed in fp64 for the rows covered, and rounded once.
    Only for tensors of floats.

    Raises
    ------
    InputError
        if a file is shorter than its header promised.
    EnvironmentFault
        if a file cannot be read.

    """
    import torch

    stored = checkpoint.tensors[name]
    assert stored.is_float
    values = read_range(stored, start, stop).to(torch.float32)
    update = checkpoint.low_rank.get(name)
    if update is not None:
        _add(values, update, stored.shape[1], start)
    return values


def _add(values: torch.Tensor, update: LowRank, columns: int, start: int) -> None:
    """Add to `values`, in place, the part of the update that they cover."""
    left, right = _factors(update)
    stop = start + len(values)
    step = _BLOCK_ROWS * columns
    for block in range(start - start % step, stop, step):
        row = block // columns
        delta = (left[row : row + _BLOCK_ROWS] @ right).reshape(-1)
        low, high = max(start, block), min(stop, block + len(delta))
        covered = values[low - start : high - start]
        covered.copy_(covered.double().add_(delta[low - block : high - block], alpha=update.scale))


def _factors(update: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    """L and R in fp64 with L @ R the update before scaling: B, A or their transposes swapped."""
    a, b = _matrix(update.a), _matrix(update.b)
    return (a.T.contiguous(), b.T.contiguous()) if update.transposed else (b, a)


def _matrix(stored: Stored) -> torch.Tensor:
    import torch

    return read_range(stored, 0, stored.numel).to(torch.float64).reshape(stored.shape)
