"""Where merged tensors go, and who is told how far the work is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.plan import Step

__all__ = ["Progress", "Sink"]

Progress: TypeAlias = Callable[[int], None]  # bytes read since the last call; from any thread


class Sink(Protocol):
    """Where merged tensors go: files, or the parameters of a live module."""

    def write(self, step: Step, start: int, data: NDArray[np.uint8]) -> None:
        """Take the bytes of elements from flat index `start` on, in the step's dtype.

        One thread gives all of a step's blocks, in order; steps come from several threads. A step
        may begin again at 0. `data` is overwritten after the call.
        """

    def finish(self, step: Step, inputs: tuple[str, ...], note: str) -> None:
        """Know that a step is whole.

        `inputs` are the digests of what was read of `step.all_inputs` (XXH3 of 128 bits: they say
        which input is another one; what was made of them is told by the output's own digests).
        `note` says what is to be known of the tensor, or is empty.
        """
