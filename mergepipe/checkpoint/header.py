"""The header of a safetensors file, read and held against the file's size.

A file is 8 bytes (the header's length, little-endian), a JSON object that gives each tensor's
dtype, shape and byte range, then the data, which the ranges must cover without hole or overlap:
parsers that are lenient here disagree on what the file holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergepipe.checkpoint.files import (
    JSON_CAP_BYTES,
    FileFaultError,
    opened,
    parse_json,
    pread_exactly,
)
from mergepipe.checkpoint.tensors import DTYPES, Stored

__all__ = ["read_header"]

_LENGTH_BYTES = 8
_MOST_BYTES = 2**63 - 1
_MOST_DIMENSIONS = 64
_FIELDS = {"dtype", "shape", "data_offsets"}
_PAIR = 2


def read_header(file: Path) -> tuple[dict[str, Stored], list[str]]:
    """Read the tensors of a safetensors file, in storage order, and every fault of its header.

    Reads the header only. If there are faults, the tensors are those that could be understood.

    Raises
    ------
    FileFaultError
        if no header can be read at all.

    """
    with opened(file) as (fd, size):
        raw = _header_bytes(fd, size)
    try:
        header, duplicates = parse_json(raw)
    except FileFaultError as fault:
        raise FileFaultError(f"the header is {fault}") from fault
    if not isinstance(header, dict):
        raise FileFaultError("the header is not a JSON object (a map from tensor name to place)")
    return _check(header, duplicates, file, _LENGTH_BYTES + len(raw), size)


def _header_bytes(fd: int, size: int) -> bytes:
    """Read the header's JSON; the length is never echoed, as the file may not be ours to show."""
    if size < _LENGTH_BYTES:
        raise FileFaultError(
            "the file is empty (0 bytes): no header"
            if size == 0
            else f"the file is too small for a header ({size} bytes)"
        )
    start = pread_exactly(fd, _LENGTH_BYTES, 0)
    length = int.from_bytes(start, "little")
    if length == 0:
        raise FileFaultError("the header is empty (its length is 0)")
    if length > size - _LENGTH_BYTES:
        raise FileFaultError(f"the header is said to be longer than the file: {_looks_like(start)}")
    if length > JSON_CAP_BYTES:
        raise FileFaultError(f"the header is too large: {length:,} bytes, over the cap of 100 MB")
    return pread_exactly(fd, length, _LENGTH_BYTES)


def _looks_like(start: bytes) -> str:
    if start.lstrip().startswith(b"<"):
        return "it is an HTML page, saved in place of the file"
    if start == b"version ":
        return "it is a Git LFS pointer; fetch the file with `git lfs pull`"
    return "truncated, incomplete, or no safetensors file"


def _check(
    header: dict[str, Any], duplicates: list[str], file: Path, data_start: int, size: int
) -> tuple[dict[str, Stored], list[str]]:
    faults = [f"'{name}' appears twice (duplicate) in the header" for name in duplicates]
    metadata = header.pop("__metadata__", {})
    if not _is_text_map(metadata):
        faults.append("__metadata__ must map strings to strings")
    tensors: list[Stored] = []
    for name, entry in header.items():
        fault = _entry_fault(entry)
        if fault:
            faults.append(f"tensor '{name}': {fault}")
        else:
            start, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            place = (data_start + start, data_start + stop)
            tensors.append(Stored(name, entry["dtype"], shape, file, *place))
    faults += _name_faults(header)
    if not faults:
        tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
        faults = _layout_faults(tensors, data_start, size)
    return {tensor.name: tensor for tensor in tensors}, faults


def _is_text_map(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())


def _entry_fault(entry: Any) -> str | None:
    """Say what is wrong with one tensor's entry, apart from its place among the others."""
    if not isinstance(entry, dict):
        return "its entry is not a JSON object"
    if not entry.keys() >= _FIELDS:
        return f"its entry has no {' and no '.join(sorted(_FIELDS - entry.keys()))}"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"dtype {dtype!r} is unknown or not supported"
    return (
        _shape_fault(shape)
        or _offsets_fault(offsets)
        or _size_fault(shape, offsets, DTYPES[dtype].itemsize)
    )


def _shape_fault(shape: Any) -> str | None:
    if not isinstance(shape, list) or not _are_integers(shape):
        return f"invalid shape {shape}: dimensions must be integers"
    if shape and min(shape) < 0:
        return f"invalid shape {shape}: a dimension is negative"
    if len(shape) > _MOST_DIMENSIONS:
        return f"invalid shape: {len(shape)} dimensions"
    return None


def _offsets_fault(offsets: Any) -> str | None:
    if not isinstance(offsets, list) or len(offsets) != _PAIR or not _are_integers(offsets):
        return f"invalid data_offsets {offsets!r}: two integers are needed"
    if min(offsets) < 0:
        return f"invalid data_offsets {offsets}: an offset is negative"
    if max(offsets) > _MOST_BYTES:
        return "invalid data_offsets: an offset overflows 64 bits"
    if offsets[0] > offsets[1]:
        return f"invalid data_offsets {offsets}: the end lies before the start"
    return None


def _are_integers(values: list[Any]) -> bool:
    # By exact type: true is an int to Python, but no number of elements.
    return set(map(type, values)) <= {int}


def _size_fault(shape: list[int], offsets: list[int], itemsize: int) -> str | None:
    needed = math.prod(shape) * itemsize
    if needed > _MOST_BYTES:
        return f"shape {shape} overflows 64 bits"
    spanned = offsets[1] - offsets[0]
    if needed != spanned:
        return f"shape {shape} takes {needed} bytes, but data_offsets span {spanned} bytes"
    return None


def _name_faults(names: Iterable[str]) -> list[str]:
    """Names that no UTF-8 header can hold: lone surrogates written as JSON escapes."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return ["a tensor name is not valid Unicode (a lone surrogate)"]
    return []


def _layout_faults(tensors: list[Stored], data_start: int, size: int) -> list[str]:
    """Holes and overlaps between tensors sorted by offset, and data missing or left at the end."""
    faults: list[str] = []
    end, last = data_start, "the header"
    for tensor in tensors:
        if tensor.start > end:
            faults.append(
                f"a hole of {tensor.start - end} unclaimed bytes (a gap) before tensor"
                f" '{tensor.name}', after {last}"
            )
        elif tensor.start < end:
            faults.append(f"tensor '{tensor.name}' overlaps {last}: data_offsets share bytes")
        if tensor.stop >= end:
            end, last = tensor.stop, f"tensor '{tensor.name}'"
    if end > size:
        faults.append(
            f"truncated: the header claims {end:,} bytes in all, the file's size is {size:,}"
            " (an incomplete download?)"
        )
    if end < size:
        faults.append(f"{size - end:,} extra (trailing) bytes after the last tensor")
    return faults
