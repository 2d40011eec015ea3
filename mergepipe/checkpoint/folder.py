"""Which files of a model folder hold its weights, and the tensors in them.

Only files that the index names, or that carry the standard names, are opened: a folder may also
hold `training_args.bin` or `optimizer.pt`, which are pickles of anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergepipe.checkpoint.files import FileFaultError, Place, report
from mergepipe.checkpoint.header import read_header
from mergepipe.checkpoint.index import Index, index_faults, read_index
from mergepipe.checkpoint.pickles import read_pickle
from mergepipe.checkpoint.tensors import Stored
from mergepipe.errors import Problems

_SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"
_INDEX = ".index.json"
_FIX = "fetch or save the model again"
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth"}


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors in storage order, and which pickled names share exactly the storage of another."""

    tensors: Mapping[str, Stored] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


def is_weight_file(path: Path) -> bool:
    """Tell a file of weights that may stand for a model by itself, by its name."""
    try:
        return path.suffix in {".safetensors", *_PICKLE_SUFFIXES} and path.is_file()
    except (OSError, ValueError):
        return False


def read_weights(place: Place, problems: Problems) -> Weights:
    """Read the weights of a model, from headers alone; empty where faults were found."""
    if place.folder.is_file():
        beside = Place(place.label, place.folder.parent, place.folder.parent.name)
        return read_file(beside, place.folder.name, problems) or Weights()
    files = frozenset(path.name for path in place.folder.iterdir())
    index = _index_name(files)
    if index:
        return _read_indexed(place, index, files, problems)
    name = _single_file(place, files, problems)
    return (read_file(place, name, problems) if name else None) or Weights()


def read_file(place: Place, name: str, problems: Problems) -> Weights | None:
    """Read the tensors of one weight file, safetensors or pickle; None if it has faults."""
    file = place.folder / name
    is_pickle = file.suffix in _PICKLE_SUFFIXES
    fix = "save the model as safetensors" if is_pickle else _FIX
    try:
        if is_pickle:
            return Weights(*read_pickle(file))
        tensors, faults = read_header(file)
    except FileFaultError as fault:
        problems.add(place.of(name), str(fault), fix)
        return None
    report(problems, place.of(name), faults, _FIX)
    return None if faults else Weights(tensors)


def _index_name(files: frozenset[str]) -> str | None:
    """Choose the index to follow: that of safetensors wins over any pickle."""
    for name in (_SAFETENSORS, _PICKLE):
        if name + _INDEX in files:
            return name + _INDEX
        if name in files:
            return None
    return None


def _single_file(place: Place, files: frozenset[str], problems: Problems) -> str | None:
    """Name of the one weight file of a folder without index."""
    for name in (_SAFETENSORS, _PICKLE):
        if name in files:
            return name
    others = sorted(
        name
        for name in files
        if name.endswith(".safetensors") and name != "adapter_model.safetensors"
    )
    if len(others) == 1:
        return others[0]
    problems.add(place.of(), *_why_no_weights(files, others))
    return None


def _why_no_weights(files: frozenset[str], others: list[str]) -> tuple[str, str]:
    """Say what is wrong with a folder that has no single set of weights, and what to do."""
    if others:
        what = f"has {len(others)} .safetensors files and no {_SAFETENSORS}{_INDEX}"
        return what, f"which are the weights? found: {', '.join(others[:5])}"
    if "adapter_config.json" in files:
        what = "is a PEFT (LoRA) adapter, not a model"
        fix = "give its base model as `path` and this folder as `adapter` (mergekit: BASE+ADAPTER)"
        return what, fix
    if any(name.endswith(".gguf") for name in files):
        what = "holds only a .gguf file, which mergepipe does not read"
        return what, "use the safetensors that the gguf was made from"
    what = f"no weights: neither {_SAFETENSORS} nor {_PICKLE} nor an index of shards"
    return what, "is the download complete?"


def _read_indexed(place: Place, file: str, files: frozenset[str], problems: Problems) -> Weights:
    """Read a sharded checkpoint and hold it against its index."""
    index = read_index(place, file, problems)
    if index is None:
        return Weights()
    if _SAFETENSORS in files and _SAFETENSORS not in index.shards:
        what = f"both {_SAFETENSORS} and {file} are here, and the index names other files"
        problems.add(place.of(file), what, "loaders disagree on which wins: remove one")
    absent = frozenset(shard for shard in index.shards if not os.path.lexists(place.folder / shard))
    faults = [f"shard '{shard}' does not exist" for shard in index.shards if shard in absent]
    report(problems, place.of(file), faults, _FIX)
    held: dict[str, Weights] = {}
    for shard in index.shards:
        weights = None if shard in absent else read_file(place, shard, problems)
        if weights:
            held[shard] = weights
    report(problems, place.of(file), index_faults(index, {s: held[s].tensors for s in held}), _FIX)
    joined = _joined(held)
    if len(held) == len(index.shards):
        _check_total_size(place.of(file), index, joined, problems)
    return joined


def _check_total_size(where: str, index: Index, weights: Weights, problems: Problems) -> None:
    """Warn of a wrong `total_size`: harmless, as nothing relies on it."""
    actual = sum(stored.nbytes for stored in weights.tensors.values())
    is_pickled = any(Path(shard).suffix in _PICKLE_SUFFIXES for shard in index.shards)
    # Tied tensors are counted once or twice in pickled checkpoints.
    if index.total_size not in {None, actual} and not is_pickled:
        problems.warn(where, f"total_size is {index.total_size}, the tensors have {actual} bytes")


def _joined(shards: Mapping[str, Weights]) -> Weights:
    tensors: dict[str, Stored] = {}
    aliases: dict[str, str] = {}
    for weights in shards.values():
        tensors.update(weights.tensors)
        aliases.update(weights.aliases)
    return Weights(tensors, aliases)
