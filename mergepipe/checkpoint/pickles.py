"""Tensors of a pickled checkpoint (`pytorch_model.bin`), without running code from it.

`torch.load(weights_only=True)` rebuilds tensors and nothing else. For the zip format it is asked
for meta tensors, which have no values but know the offset of theirs in the file, so that bytes
are read later, range by range, as from safetensors.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergepipe.checkpoint.files import FileFaultError, opened, pread_exactly
from mergepipe.checkpoint.tensors import DTYPES, Stored

if TYPE_CHECKING:
    import torch

_ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
_OFFSET = "_checkpoint_offset"  # torch's name for where a meta storage's bytes are in the file
# All that torch's unpickler was seen to raise on damaged or hostile files.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError,
    AttributeError, TypeError, AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip
_REFUSED = re.compile(r"GLOBAL \S+|operand \d+")
_UNZIPPING_ERRORS = (
    zipfile.BadZipFile, RuntimeError, OSError, ValueError, EOFError, struct.error,
)  # fmt: skip


def read_pickle(file: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Read the tensors of a pickled state dict, and its aliases.

    An alias maps a name to the first name that shares exactly its storage, as tied weights do.

    Raises
    ------
    FileFaultError
        if it is not a plain pickle of tensors, or would not fit its own size.

    """
    with opened(file) as (fd, size):
        if size == 0:
            raise FileFaultError("the file is empty (0 bytes)")
        is_zip = pread_exactly(fd, len(_ZIP_MAGIC), 0) == _ZIP_MAGIC
        entries = dict(_entries(file, fd, size)) if is_zip else {}
    state = _load(file, "meta" if is_zip else "cpu")
    loaded = {} if all(_on_disk(tensor, entries) for tensor in state.values()) else state
    if loaded and is_zip:
        # Views that no byte range describes: rare, so simply held in memory.
        loaded = _load(file, "cpu")
    tensors: dict[str, Stored] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        values = None if _on_disk(tensor, entries) else loaded[name].detach().reshape(-1)
        stored = tensors[name] = _stored(name, tensor, file, values)
        same = first.setdefault(_storage_key(tensor), name)
        if same != name and stored.numel:
            aliases[name] = same
    return tensors, aliases


def _entries(file: Path, fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Give offset and size of each zip entry's data; refuses what torch would not have written."""
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
            _check_entries(listed, size)
            _check_byte_order(archive)
    except _UNZIPPING_ERRORS as error:
        raise FileFaultError(f"a damaged or truncated zip pickle: {error}") from error
    for entry in listed:
        local = pread_exactly(fd, _LOCAL_HEADER_BYTES, entry.header_offset)
        # Lengths of the name and the extra field, which precede the data.
        names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        offset = entry.header_offset + _LOCAL_HEADER_BYTES + names
        if offset + entry.file_size > size:
            raise FileFaultError(f"truncated: entry '{entry.filename}' runs past the file's end")
        yield offset, entry.file_size


def _check_entries(listed: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse zip entries that would inflate, or whose names are ambiguous (torch ignores case)."""
    for entry in listed:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise FileFaultError(f"zip entry '{entry.filename}' is compressed")
    if sum(entry.file_size for entry in listed) > size:
        raise FileFaultError("its zip entries inflate to more than the file's size")
    if len({entry.filename.lower() for entry in listed}) < len(listed):
        raise FileFaultError("two of its zip entries have the same name (duplicate)")


def _check_byte_order(archive: zipfile.ZipFile) -> None:
    """Refuse what a big-endian machine saved: torch crashes when it swaps meta tensors."""
    for name in archive.namelist():
        if name.lower().endswith("/byteorder") and archive.read(name) != b"little":
            raise FileFaultError("its numbers are big-endian, which is not supported")


def _load(file: Path, device: str) -> dict[str, torch.Tensor]:
    """Load the state dict to `device` by torch's restricted unpickler."""
    import torch

    try:
        # torch warns of pickles by other writers, which are refused or read all the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location=device, weights_only=True)
    except _UNPICKLING_ERRORS as error:
        what = "unsafe or damaged pickle: torch's weights_only unpickler refuses it"
        raise FileFaultError(f"{what} ({_reason(error)})") from error
    if not isinstance(state, dict):
        raise FileFaultError(f"the pickle holds no state dict but a {type(state).__name__}")
    for name, value in state.items():
        _check_item(name, value)
    return state


def _reason(error: Exception) -> str:
    """Give what torch refused; the rest of its message advises `weights_only=False`."""
    refused = _REFUSED.search(str(error))
    return refused[0] if refused else type(error).__name__


def _check_item(name: object, value: object) -> None:
    import torch

    if not isinstance(name, str):
        raise FileFaultError(
            f"the pickle's keys are not tensor names but of type {type(name).__name__}"
        )
    if isinstance(value, dict):
        raise FileFaultError(
            f"the pickle is not a plain state dict: '{name}' holds another dict of what may be"
            " the weights"
        )
    if not isinstance(value, torch.Tensor):
        raise FileFaultError(f"'{name}' is not a tensor but of type {type(value).__name__}")
    if value.layout != torch.strided or value.is_quantized or _dtype_name(value) is None:
        raise FileFaultError(f"tensor '{name}' is sparse, quantized or of an unknown dtype")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise FileFaultError(f"tensor '{name}' has more elements than are stored")


def _dtype_name(tensor: torch.Tensor) -> str | None:
    """Give the safetensors name of a tensor's dtype."""
    torch_name = str(tensor.dtype).removeprefix("torch.")
    return next((name for name, dtype in DTYPES.items() if dtype.torch_name == torch_name), None)


def _on_disk(tensor: torch.Tensor, entries: dict[int, int]) -> bool:
    """Whether a meta tensor's values are one byte range of a zip entry.

    torch computes the offset from the sizes of the entries before; it is trusted only where it
    is the start of an entry that really holds the storage.
    """
    storage = tensor.untyped_storage()
    offset = getattr(storage, _OFFSET, None)
    held = -1 if offset is None else entries.get(offset, -1)
    return tensor.is_contiguous() and held >= storage.nbytes()


def _stored(name: str, tensor: torch.Tensor, file: Path, values: torch.Tensor | None) -> Stored:
    dtype = _dtype_name(tensor)
    assert dtype is not None
    shape, nbytes = tuple(tensor.shape), tensor.numel() * tensor.element_size()
    if values is not None:
        return Stored(name, dtype, shape, file, 0, nbytes, memory=values.clone())
    offset: int = getattr(tensor.untyped_storage(), _OFFSET)
    start = offset + int(tensor.storage_offset()) * tensor.element_size()
    return Stored(name, dtype, shape, file, start, start + nbytes)


def _storage_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same view of the same storage."""
    storage = tensor.untyped_storage()
    offset = getattr(storage, _OFFSET, None)
    where = storage.data_ptr() if offset is None else offset
    return where, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()
