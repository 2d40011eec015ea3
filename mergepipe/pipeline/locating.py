"""The inputs of a finished run, found again, and what their task vectors are."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_128

from mergepipe.checkpoint import Checkpoint, Stored, layer_of, open_checkpoint, read_into
from mergepipe.digest import digest_of
from mergepipe.errors import MergepipeError, Problems
from mergepipe.inspect import Inputs, Reporter, inspect
from mergepipe.manifest import MEASURED_FILE
from mergepipe.recipe import Document, MergeSpec, Recipe, parse
from mergepipe.report.contents import Maps
from mergepipe.report.measured import kept, maps_of, read_kept
from mergepipe.report.paths import without_paths
from mergepipe.write import disk_faults

__all__ = ["Measuring", "measured"]

_ASK = "give the folder that has them by --inputs FOLDER"
_SAMPLE = 3  # tensors of each model that are held against the manifest
_MOST_BYTES = 64 << 20  # of one of these


@dataclass(frozen=True, slots=True)
class Measuring:
    """Where the inputs are, if the user said it, and how they are read."""

    inputs: Path | None = None
    threads: int | None = None
    progress: Reporter | None = None


def measured(
    folder: Path, manifest: Mapping[str, Any], recipe: Recipe, roots: Sequence[Path], how: Measuring
) -> tuple[Maps | None, str]:
    """Give the task vectors' maps, kept or measured; or None, and why not.

    `roots` are folders that the recipe's relative paths may be relative to.
    """
    spec = _based(recipe)
    if spec is None:
        return None, "No merge of this recipe has a base, so there are no task vectors."
    file, identity = folder / MEASURED_FILE, _identity(manifest)
    if file.is_file() and not file.is_symlink():
        found = read_kept(file.read_text(encoding="utf-8", errors="replace"), identity)
        if found is not None:
            return found, ""
    try:
        inputs = _opened(manifest, recipe, spec, roots, how.inputs)
        maps = maps_of(inspect(inputs, threads=how.threads, reporter=how.progress))
    except MergepipeError as error:
        why = "; ".join(str(one) for one in error.problems[:2])
        return None, f"The task vectors were not measured: {without_paths(why)}"
    if os.access(folder, os.W_OK):
        with disk_faults(file):
            file.write_text(kept(maps, identity), encoding="utf-8")
    return maps, ""


def _identity(manifest: Mapping[str, Any]) -> str:
    """Give a digest of all weights that went in."""
    tensors = {label: one["tensors"] for label, one in manifest["inputs"].items()}
    return digest_of(json.dumps(tensors, sort_keys=True).encode())


def _based(recipe: Recipe) -> MergeSpec | None:
    """Give the last merge whose base and at least one model are models, not stages."""
    for spec in tuple(recipe.merges.values())[::-1]:
        models = [one for one in spec.models if one != spec.base and one in recipe.sources]
        if spec.base in recipe.sources and models and not spec.slices:
            return spec
    return None


def _opened(
    manifest: Mapping[str, Any],
    recipe: Recipe,
    spec: MergeSpec,
    roots: Sequence[Path],
    given: Path | None,
) -> Inputs:
    problems = Problems()
    data = _placed(recipe.data, roots, given)
    placed = parse(Document(recipe.file, data, {(): (1, 1)}), problems)
    problems.raise_any()
    assert placed is not None and spec.base is not None, "as it was before"  # noqa: PT018
    labels = [spec.base, *(one for one in spec.models if one in recipe.sources)]
    opened = {}
    for label in dict.fromkeys(labels):
        source = placed.sources[label]
        if source.path is not None and not source.path.exists():
            what = f"{source.path.name} is not where it was, or beside the result"
            problems.add(label, what, _ASK)
            continue
        found = open_checkpoint(source, problems, local_files_only=True)
        if found is not None and not _is_same(found, manifest["inputs"][label]["tensors"]):
            problems.add(label, f"{found.folder.name} is not what the run read", _ASK)
        elif found is not None:
            opened[label] = found
    problems.raise_any()
    base = opened.pop(spec.base)
    return Inputs(base, tuple(opened.values()), ())


def _placed(data: Any, roots: Sequence[Path], given: Path | None) -> Any:
    """Give the recipe with the paths of its models as they are here."""
    found = copy.deepcopy(data)
    for label, entry in found["models"].items():
        if isinstance(entry, str):
            found["models"][label] = _path(entry, label, roots, given)
        elif isinstance(entry, dict):
            for key in ("path", "adapter"):
                if isinstance(entry.get(key), str):
                    entry[key] = _path(entry[key], label, roots, given)
    return found


def _path(text: str, label: str, roots: Sequence[Path], given: Path | None) -> str:
    """Give where a path of the recipe leads here; as it is, if nowhere."""
    path = Path(text).expanduser()
    places = [] if given is None else [given / path, given / path.name, given / label]
    places += [place for root in roots for place in (root / path, root / path.name)]
    there = (str(one.resolve()) for one in places if one.exists())
    return next(there, text)


def _is_same(model: Checkpoint, recorded: Mapping[str, str]) -> bool:
    """Hold a few tensors of a model against the digests of what the run read.

    Of tables of words the run may have read rows in another order, so layers are looked at.
    """
    if not set(recorded) <= set(model.tensors):
        return False
    plain = [
        name
        for name, stored in model.tensors.items()
        if name in recorded
        and name not in model.low_rank
        and layer_of(name) is not None
        and stored.memory is None
        and stored.nbytes <= _MOST_BYTES
    ]
    step = max(1, len(plain) // _SAMPLE)
    return all(recorded[name] == _digest(model.tensors[name]) for name in plain[::step])


def _digest(stored: Stored) -> str:
    data = np.empty(stored.nbytes, np.uint8)
    read_into(stored, 0, stored.numel, data)
    return f"xxh3:{xxh3_128(data.data).hexdigest()}"
