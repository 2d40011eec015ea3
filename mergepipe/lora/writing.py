"""A PEFT adapter on disk: tensors written as they are made, and the config that names them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from mergepipe.checkpoint import DTYPES, torch_dtype
from mergepipe.errors import InputError, NonFiniteError, Problem, did_you_mean
from mergepipe.write import disk_faults

__all__ = [
    "WEIGHTS",
    "TensorFile",
    "dtype_named",
    "factor_names",
    "low_rank_fields",
    "rounded",
    "short_names",
    "stored_name",
    "write_config",
]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ALIGNMENT = 8
_FLOATS = {DTYPES[name].torch_name: name for name in ("F32", "BF16", "F16")}


def dtype_named(name: str) -> str:
    """Give the safetensors name of a dtype that factors can have, such as `bfloat16`.

    Raises
    ------
    InputError
        if there is none.

    """
    if name not in _FLOATS:
        what = f"'{name}' is no dtype for an adapter{did_you_mean(name, _FLOATS)}"
        raise InputError(Problem("--dtype", what))
    return _FLOATS[name]


def rounded(values: Tensor, dtype: str, where: str) -> Tensor:
    """Give `values` in the dtype that is written.

    Raises
    ------
    NonFiniteError
        if one does not fit.

    """
    found = values.to(torch_dtype(dtype))
    if not found.isfinite().all():
        largest = float(values.abs().max())
        what = f"a factor of {largest:.3g} does not fit {DTYPES[dtype].torch_name}"
        raise NonFiniteError(Problem(where, what, "choose --dtype bfloat16 or float32"))
    return found


def stored_name(tensor: str) -> str:
    """Give the name in an adapter's file of a tensor that it stores whole."""
    return _PREFIX + tensor


def factor_names(module: str, *, is_embedding: bool) -> tuple[str, str]:
    """Give the names of B and A in an adapter's file."""
    kind, end = ("lora_embedding_", "") if is_embedding else ("lora_", ".weight")
    return f"{_PREFIX}{module}.{kind}B{end}", f"{_PREFIX}{module}.{kind}A{end}"


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return DTYPES[self.dtype].itemsize * torch.Size(self.shape).numel()


class TensorFile:
    """A safetensors file that is written tensor by tensor, in the order in which they come.

    Neither the shapes nor which tensors there will be need be known before: `most` has a (dtype,
    shape) for every tensor that may come, at its largest, and room is left for that header. Wide
    dtypes must come first, so that every tensor is aligned. Use it as a context manager.
    """

    def __init__(self, path: Path, most: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self._path = path
        self._entries: dict[str, _Entry] = {}
        room = len(_header({name: _Entry(*one) for name, one in most.items()}))
        self._room = room + -room % _ALIGNMENT
        self._end = 8 + self._room

    def __enter__(self) -> Self:
        with disk_faults(self._path):
            self._file = self._path.open("xb")
            self._file.seek(self._end)
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor."""
        dtype = next(key for key, one in DTYPES.items() if _torch_name(tensor) == one.torch_name)
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        with disk_faults(self._path):
            self._file.write(values.numpy().data)
        self._entries[name] = _Entry(dtype, tuple(tensor.shape))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with disk_faults(self._path), self._file:
            if kind is None:
                text = _header(self._entries).ljust(self._room)
                self._file.seek(0, os.SEEK_SET)
                self._file.write(len(text).to_bytes(8, "little") + text)


def _torch_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _header(entries: Mapping[str, _Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in entries.items():
        start, end = end, end + entry.nbytes
        place = {"shape": list(entry.shape), "data_offsets": [start, end]}
        header[name] = {"dtype": entry.dtype, **place}
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def low_rank_fields(ranks: Mapping[str, int], alpha: float | None = None) -> dict[str, Any]:
    """Give the ranks and alphas of a config: one alpha for all modules, or all scales 1 if None.

    `r` is the largest rank: loaders that know no patterns reserve enough, and scale rightly.
    """
    rank = max(ranks.values())
    # The longest names first: PEFT takes the first that matches the end of a module's name.
    others = sorted((m for m, r in ranks.items() if r != rank), key=lambda m: (-len(m), m))
    pattern = {module: ranks[module] for module in others}
    return {
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "rank_pattern": pattern,
        "alpha_pattern": pattern if alpha is None else {},
    }


def write_config(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write `adapter_config.json`: `fields` over what is the same in all adapters of ours."""
    config = {
        "peft_type": "LORA",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        **fields,
    }
    text = json.dumps(dict(sorted(config.items())), indent=2, ensure_ascii=False) + "\n"
    with disk_faults(folder / CONFIG):
        (folder / CONFIG).write_text(text, encoding="utf-8")


def short_names(modules: Iterable[str], others: Iterable[str]) -> list[str]:
    """Name modules by their last parts, where that means no other module, else in full.

    PEFT takes a name to mean every module whose name ends with it, in some places at any letter.
    """
    chosen, rest = list(modules), [f".{module}" for module in others]
    lasts = {module: module.rpartition(".")[2] for module in chosen}
    clear = {last for last in set(lasts.values()) if not any(one.endswith(last) for one in rest)}
    return sorted({last if last in clear else module for module, last in lasts.items()})
