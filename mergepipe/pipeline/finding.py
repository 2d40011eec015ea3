"""The inputs that a manifest names, found again and held against what it recorded of them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_128

from mergepipe.checkpoint import Checkpoint, Stored, layer_of, read_into
from mergepipe.digest import digest_file, digest_header
from mergepipe.errors import Problem, Problems
from mergepipe.pipeline.preparing import Prepared
from mergepipe.write import disk_faults

__all__ = ["Search", "check_inputs", "check_transplants", "placed"]

_PIECE = 1 << 20  # elements
_ASK = "give the folder that has it by --inputs FOLDER, or the model by --model LABEL=PATH"
_NEVER_READ = ("models", "output", "publish", "search")
_SCORING = ("evaluate", "beside", "retention")


@dataclass(frozen=True, slots=True)
class Search:
    """Where to look: folders in their order, and models that were named."""

    roots: tuple[Path, ...]
    models: Mapping[str, Path]
    scratch: Path  # for links


def placed(content: Mapping[str, Any], search: Search, problems: Problems, *, scored: bool) -> Any:
    """Give the recipe of a manifest with every input where it is here.

    Models on the hub are named by their commits; those that are local are told by their headers
    and settings, whatever they are called. Without `scored`, evaluations are left out.
    """
    left_out = ("search", "publish", *(() if scored else _SCORING))
    recipe = {k: v for k, v in content["recipe"].items() if k not in left_out}
    unknown = sorted(search.models.keys() - content["inputs"].keys())
    for label in unknown:
        known = ", ".join(content["inputs"])
        problems.add("--model", f"the recipe has no model '{label}'", f"known: {known}")
    found = {
        label: _Finder(label, one, text, search, problems).found()
        for (label, one), text in zip(content["inputs"].items(), _texts(recipe), strict=True)
    }
    recipe = _with_files(recipe, search.roots)
    output = recipe.get("output")
    if isinstance(output, dict):
        recipe["output"] = {name: one for name, one in output.items() if name != "path"}
    if "models" not in recipe:
        return _mixture(recipe, found, search.scratch)
    recipe["models"] = {label: _entry(*one) for label, one in found.items()}
    return recipe


def _entry(path: str, adapter: str | None) -> Any:
    return path if adapter is None else {"path": path, "adapter": adapter}


def _texts(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give how a recipe, or a mixture of experts, names its models and their adapters, in order."""
    if "models" in recipe:
        return [_named(entry) for entry in recipe["models"].values()]
    experts = [*recipe["experts"], *(recipe.get("shared_experts") or ())]
    entries = [recipe["base_model"], *(one["source_model"] for one in experts)]
    return list(dict.fromkeys(map(_named_by_mergekit, entries)))


def _named(entry: Any) -> tuple[str, str]:
    if isinstance(entry, str):
        return entry, ""
    return str(entry["path"]), str(entry.get("adapter") or "")


def _named_by_mergekit(entry: Any) -> tuple[str, str]:
    if isinstance(entry, str):
        path, _, adapter = entry.partition("+")
        return path, adapter
    both = entry["model"], entry.get("lora") or ""
    path, adapter = (one["path"] if isinstance(one, dict) else one for one in both)
    return str(path), str(adapter)


def _mixture(recipe: Any, found: Mapping[str, tuple[str, str | None]], scratch: Path) -> Any:
    """Name the models of a mixture by links that are called what the models were called."""
    names = {}
    for at, (text, (path, adapter)) in enumerate(zip(_texts(recipe), found.values(), strict=True)):
        link = path
        if os.path.isabs(path):  # noqa: PTH117 (a hub's name is no path)
            (scratch / str(at)).mkdir()
            link = str(scratch / str(at) / (Path(text[0]).name or "model"))
            Path(link).symlink_to(path)
        names[text] = link if adapter is None else f"{link}+{adapter}"
    made = copy.deepcopy(recipe)
    made["base_model"] = names[_named_by_mergekit(made["base_model"])]
    for expert in (*made["experts"], *(made.get("shared_experts") or ())):
        expert["source_model"] = names[_named_by_mergekit(expert["source_model"])]
    return made


def _with_files(data: Any, roots: Sequence[Path], inside: str = "") -> Any:
    """Give a recipe with the paths of its data as they are here; models are left as they are."""
    if isinstance(data, dict):
        return {
            name: one if not inside and name in _NEVER_READ else _with_files(one, roots, name)
            for name, one in data.items()
        }
    if isinstance(data, list):
        return [_with_files(one, roots, inside) for one in data]
    if not isinstance(data, str) or not ("/" in data or Path(data).suffix):
        return data
    there = (path for path in _below(roots, (data,)) if _exists(path))
    return next((str(path.resolve()) for path in there), data)


def _below(roots: Sequence[Path], names: Sequence[str]) -> Iterator[Path]:
    for root in roots:
        for name in dict.fromkeys(names):
            # `~nobody` has no home; as a name it is as good as any.
            yield root / os.path.expanduser(name)  # noqa: PTH111


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (never raises)


@dataclass(frozen=True, slots=True)
class _Finder:
    """Looks for one model."""

    label: str
    recorded: Mapping[str, Any]
    text: tuple[str, str]
    search: Search
    problems: Problems

    def found(self) -> tuple[str, str | None]:
        """Give where the model is, and its adapter if it has one; a problem if it is nowhere."""
        adapter = self.recorded.get("adapter")
        given = self.search.models.get(self.label)
        path = self._place(self.recorded, self.text[0], "", given)
        if adapter is None:
            return path, None
        return path, self._place(adapter, self.text[1], " (adapter)", None)

    def _place(self, recorded: Mapping[str, Any], text: str, what: str, given: Path | None) -> str:
        source = recorded["source"]
        if source.get("hub") and given is None:
            return f"{source['hub']}@{source['commit']}" if source.get("commit") else source["hub"]
        name = str(source.get("folder") or source.get("file") or "")
        where = f"{self.label}{what}"
        places = [given] if given is not None else self._candidates(text, name, bool(what))
        differing: list[str] = []
        for place in filter(_exists, places):
            faults = list(_faults(place, recorded))
            if not faults:
                return str(place.resolve())
            differing = differing or [f"{place}: {fault}" for fault in faults]
        for one in differing:
            self.problems.add(where, f"differs from what was merged: {one}", _ASK)
        if not differing:
            shown = f"'{given}'" if given is not None else f"'{name}'"
            self.problems.add(where, f"there is no {shown} here", _ASK)
        return text or name

    def _candidates(self, text: str, name: str, is_adapter: bool) -> Iterator[Path]:
        names = [text, name, Path(text).name, *([] if is_adapter else [self.label])]
        yield from _below(self.search.roots, [one for one in names if one])
        yield from (root for root in self.search.roots if root.name == name)


def _faults(place: Path, recorded: Mapping[str, Any]) -> Iterator[str]:
    """Give which files of a model are not those that were recorded, by what is read at once."""
    for name, one in {**recorded["files"], **recorded.get("beside", {})}.items():
        file = place if place.is_file() else place / name
        if not file.is_file():
            yield f"{name} is missing"
        elif not _is_same(file, one):
            yield f"{name} is another one"


def _is_same(file: Path, recorded: Mapping[str, Any]) -> bool:
    with disk_faults(file):
        if file.stat().st_size != int(recorded["size"]):
            return False
        if "header" in recorded:
            return digest_header(file) == str(recorded["header"])
        return "blake3" not in recorded or digest_file(file) == str(recorded["blake3"])


def check_inputs(prepared: Prepared, recorded: Mapping[str, Any], problems: Problems) -> None:
    """Hold files and all tensors of the opened inputs against their records.

    Where a vocabulary is made, tables of words were read in another order than they are stored:
    then only tensors of layers are compared, and the result shows what else differs.
    """
    for label, checkpoint in prepared.checkpoints.items():
        for fault in _faults(checkpoint.folder, recorded[label]):
            problems.add(label, f"differs from what was merged: {fault}")
    if problems.found:
        return
    reordered = bool(prepared.united or prepared.transplants or prepared.recipe.compat)
    with ThreadPoolExecutor(prepared.threads, "mergepipe-check") as pool:
        for label, checkpoint in prepared.checkpoints.items():
            wanted = dict(_comparable(checkpoint, recorded[label]["tensors"], reordered))
            digests = pool.map(_digest, (checkpoint.tensors[name] for name in wanted))
            for (name, expected), digest in zip(wanted.items(), digests, strict=True):
                if digest != expected:
                    what = f"differs from what was merged: tensor '{name}'"
                    problems.add(label, what, "use the model as it was then")


def _comparable(
    checkpoint: Checkpoint, recorded: Mapping[str, str], reordered: bool
) -> Iterator[tuple[str, str]]:
    for name, digest in recorded.items():
        stored = checkpoint.tensors.get(name)
        if stored is None or stored.memory is not None or name in checkpoint.low_rank:
            continue
        if not reordered or layer_of(name) is not None:
            yield name, digest


def _digest(stored: Stored) -> str:
    """Give a tensor's digest as runs record it."""
    hasher = xxh3_128()
    if stored.numel:
        size = stored.nbytes // stored.numel
        buffer = np.empty(min(stored.numel, _PIECE) * size, np.uint8)
        for start in range(0, stored.numel, _PIECE):
            stop = min(start + _PIECE, stored.numel)
            piece = buffer[: (stop - start) * size]
            read_into(stored, start, stop, piece)
            hasher.update(piece.data)
    return f"xxh3:{hasher.hexdigest()}"


def check_transplants(prepared: Prepared, recorded: Mapping[str, Any], problems: Problems) -> None:
    """Hold the tokenizers that models are given against their records."""
    for name, one in prepared.transplants.items():
        for file, digest in recorded.get(name, {}).get("files", {}).items():
            place = one.donor.folder / file
            if not place.is_file() or digest_file(place) != digest:
                what = f"its tokenizer differs from what was used: {file}"
                problems.found.append(Problem(name, what))
