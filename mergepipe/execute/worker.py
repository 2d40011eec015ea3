"""One worker's buffers: inputs read into them as stored, results rounded into them.

Buffers are kept from tensor to tensor and only grow: fresh memory would cost a page fault every
4 KiB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mergepipe.checkpoint import DTYPES, read_into, read_range, read_values
from mergepipe.errors import NonFiniteError
from mergepipe.execute.finite import bad_input, finite_row
from mergepipe.kernels.packed import Out, Packed, unpacked
from mergepipe.kernels.tiles import F32, KINDS
from mergepipe.plan import Input, Step

if TYPE_CHECKING:
    import torch
    from xxhash import xxh3_128

__all__ = ["ModelNonFiniteError", "Worker", "hash_rows", "is_plain"]

_ALIGNMENT = 64
_SIZES = {kind: DTYPES[name].itemsize for name, kind in KINDS.items()}


class ModelNonFiniteError(NonFiniteError):
    """A model's tensor is not finite, and its base's may take its place."""


def is_plain(one: Input) -> bool:
    """Tell whether kernels can read a tensor as its file holds it."""
    return (
        one.stored.dtype in KINDS
        and one.stored.memory is None
        and one.name not in one.checkpoint.low_rank
    )


def _item_size(one: Input) -> int:
    return _SIZES[KINDS[one.stored.dtype]] if is_plain(one) else _SIZES[F32]


def _row_bytes(inputs: Sequence[Input], count: int) -> int:
    """Bytes of a row that holds `count` elements of any of the inputs, as stored or as fp32."""
    width = max(map(_item_size, inputs)) * max(count, 1)
    return -(-width // _ALIGNMENT) * _ALIGNMENT


class Worker:
    """Buffers of one thread; on a GPU they are pinned, and copies have a stream of their own.

    While one worker's stream copies, another's computes.
    """

    def __init__(self, *, allow: bool, device: torch.device | None = None) -> None:
        self.allow = allow
        self.stream: torch.cuda.Stream | None = None
        if device is not None and device.type == "cuda":
            import torch

            stream: Any = torch.cuda.Stream
            self.stream = stream(device)
        self._rows = np.empty(0, np.uint8)
        self._out = np.empty(0, np.uint8)

    def read(self, step: Step, start: int, stop: int, *, base_only: bool = False) -> Packed:
        """Read a run of all inputs; what was read before is overwritten.

        With `base_only` every row is the base's: task vectors of zero.

        Raises
        ------
        NonFiniteError
            if a value is NaN or infinite, unless that is allowed.

        """
        if self.stream is not None:
            self.stream.synchronize()  # copies from the buffer may still be under way
        inputs = step.all_inputs
        if base_only and step.base is not None:
            inputs = (step.base,) * len(inputs)
        count = stop - start
        width = _row_bytes(inputs, count)
        data = self._room(width * len(inputs)).reshape(len(inputs), width)
        kinds = np.array([KINDS[one.stored.dtype] if is_plain(one) else F32 for one in inputs])
        packed = Packed(data, kinds.astype(np.int64), count, step.base is not None)
        for row, one in enumerate(inputs):
            if is_plain(one):
                read_into(one.stored, start, stop, data[row, : count * _item_size(one)])
            else:
                wide = read_values(one.checkpoint, one.name, start, stop)
                data[row, : 4 * count] = wide.numpy().view(np.uint8)
            if not self.allow and not finite_row(packed, row):
                replaceable = step.base is not None and one is not step.base
                fault = bad_input(one, unpacked(packed, row), replaceable=replaceable)
                raise ModelNonFiniteError(*fault.problems) if replaceable else fault
        return packed

    @contextmanager
    def at_work(self) -> Iterator[Self]:
        """Make this worker's stream the current one."""
        if self.stream is None:
            yield self
            return
        import torch

        with torch.cuda.stream(self.stream):
            yield self

    def raw(self, one: Input, start: int, stop: int) -> NDArray[np.uint8]:
        """Read a run of one tensor's bytes."""
        if one.stored.memory is not None:
            import torch

            values = read_range(one.stored, start, stop).contiguous()
            held: NDArray[np.uint8] = values.view(torch.uint8).numpy()
            return held
        data = self._room((stop - start) * DTYPES[one.stored.dtype].itemsize)
        read_into(one.stored, start, stop, data)
        return data

    def out(self, count: int, kind: int) -> Out:
        """Give room for a result."""
        needed = count * _SIZES[kind]
        if self._out.size < needed:
            self._out = self._fresh(needed)
        return Out(self._out[:needed], kind)

    def _room(self, needed: int) -> NDArray[np.uint8]:
        if self._rows.size < needed:
            self._rows = np.empty(0, np.uint8)  # let go of the old before asking for the new
            self._rows = self._fresh(needed)
        return self._rows[:needed]

    def _fresh(self, needed: int) -> NDArray[np.uint8]:
        if self.stream is None:
            return np.empty(needed, np.uint8)
        import torch

        room: NDArray[np.uint8] = torch.empty(needed, dtype=torch.uint8, pin_memory=True).numpy()
        return room


def hash_rows(packed: Packed, hashers: Sequence[xxh3_128]) -> None:
    """Feed each row's run to its hasher."""
    for row, hasher in enumerate(hashers):
        size = _SIZES[int(packed.kinds[row])]
        hasher.update(
            packed.data[row, packed.first * size : (packed.first + packed.count) * size].data
        )
