"""Where a tensor's bytes are, and reading a range of them without mapping the file.

`mmap` is not used: a file that shrinks while it is mapped kills the process with SIGBUS, and a
read error becomes a signal instead of an error that can be reported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from mergepipe.errors import EnvironmentFault, InputError, Problem

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """One safetensors dtype: bytes per element, torch's name for it, and whether it is a float."""

    itemsize: int
    torch_name: str
    is_float: bool


# Packed 4- and 6-bit floats are absent on purpose: they are quantized weights.
DTYPES: Mapping[str, DType] = MappingProxyType(
    {
        "F64": DType(8, "float64", is_float=True),
        "F32": DType(4, "float32", is_float=True),
        "F16": DType(2, "float16", is_float=True),
        "BF16": DType(2, "bfloat16", is_float=True),
        "F8_E4M3": DType(1, "float8_e4m3fn", is_float=True),
        "F8_E5M2": DType(1, "float8_e5m2", is_float=True),
        "F8_E4M3FNUZ": DType(1, "float8_e4m3fnuz", is_float=True),
        "F8_E5M2FNUZ": DType(1, "float8_e5m2fnuz", is_float=True),
        "F8_E8M0": DType(1, "float8_e8m0fnu", is_float=True),
        "C64": DType(8, "complex64", is_float=False),
        "I64": DType(8, "int64", is_float=False),
        "I32": DType(4, "int32", is_float=False),
        "I16": DType(2, "int16", is_float=False),
        "I8": DType(1, "int8", is_float=False),
        "U64": DType(8, "uint64", is_float=False),
        "U32": DType(4, "uint32", is_float=False),
        "U16": DType(2, "uint16", is_float=False),
        "U8": DType(1, "uint8", is_float=False),
        "BOOL": DType(1, "bool", is_float=False),
    }
)


class Held(Protocol):
    """The values of a tensor that is in no file: held in memory, or made when they are read."""

    def __getitem__(self, run: slice, /) -> torch.Tensor:
        """Give a run of the flattened tensor, in its dtype."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor on disk: a byte range of a file, read only when asked for.

    `start` and `stop` are absolute byte offsets in `file`. `memory` gives the values (1-D) of the
    few tensors that no byte range describes: legacy pickles, pickled non-contiguous views, and
    what is made (gates, noise), where the name of `file` stands for all that it is made of.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int
    memory: Held | None = field(default=None, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.stop - self.start

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the elements are real floating-point numbers, so that they can be merged."""
        return DTYPES[self.dtype].is_float


@dataclass(frozen=True, slots=True)
class LowRank:
    """A LoRA update of a matrix W: `W + scale * (B @ A)`, or its transpose if `transposed`.

    `a` is [rank, in] and `b` [out, rank]; W is [out, in], or [in, out] if `transposed`, as in
    Conv1D layers (`fan_in_fan_out`) and embeddings.
    """

    a: Stored
    b: Stored
    scale: float
    transposed: bool


def torch_dtype(name: str) -> torch.dtype:
    """Give the torch dtype of a safetensors dtype name.

    Raises
    ------
    InputError
        if the name is unknown, or the installed torch has no such dtype.

    """
    import torch

    known = DTYPES.get(name)
    found = getattr(torch, known.torch_name, None) if known else None
    if not isinstance(found, torch.dtype):
        raise InputError(f"dtype {name} is not supported by torch {torch.__version__}")
    return found


def read_range(stored: Stored, start: int, stop: int) -> torch.Tensor:
    """Elements `start` to `stop` of the flattened tensor: 1-D, in the stored dtype.

    Safe to call from several threads at once; keeps no file open.

    Raises
    ------
    InputError
        if the file is shorter than its header promised.
    EnvironmentFault
        if the file cannot be opened or read.

    """
    import torch

    assert 0 <= start <= stop <= stored.numel
    if stored.memory is not None:
        return stored.memory[start:stop]
    values = torch.empty(stop - start, dtype=torch_dtype(stored.dtype))
    offset = stored.start + start * values.element_size()
    _fill(stored, values.view(torch.uint8).numpy().data, offset)
    return values


def read_into(stored: Stored, start: int, stop: int, buffer: NDArray[np.uint8]) -> None:
    """Fill `buffer` with the bytes of elements `start` to `stop` of a tensor that is in a file.

    Safe to call from several threads at once; keeps no file open.

    Raises
    ------
    InputError
        if the file is shorter than its header promised.
    EnvironmentFault
        if the file cannot be opened or read.

    """
    assert 0 <= start <= stop <= stored.numel
    assert stored.memory is None, "only bytes of files are read as they are"
    _fill(stored, buffer.data, stored.start + start * DTYPES[stored.dtype].itemsize)


def _fill(stored: Stored, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from the file; a short read is continued, not an error."""
    try:
        fd = os.open(stored.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _read_all(stored, fd, buffer, offset)
        finally:
            os.close(fd)
    except OSError as error:
        what = f"tensor '{stored.name}' could not be read at byte {offset}: {error.strerror}"
        raise EnvironmentFault(Problem(str(stored.file), what)) from error


def _read_all(stored: Stored, fd: int, buffer: memoryview, offset: int) -> None:
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            what = f"tensor '{stored.name}' is cut off at byte {offset + done}"
            fix = "the file became shorter while it was in use; fetch it again"
            raise InputError(Problem(str(stored.file), what, fix))
        done += count
