"""Which files of a checkpoint's folder are published: those on a list, and no others."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from mergepipe.errors import DifferenceError, InputError, Problem
from mergepipe.manifest import (
    MANIFEST_FILE,
    MEASURED_FILE,
    PAGE_FILE,
    RESULTS_FILE,
    RUN_FILE,
    Manifest,
    read_manifest,
)
from mergepipe.publish.item import Item, Parcel, item_of
from mergepipe.publish.secrets import find_secrets
from mergepipe.verify import verify

__all__ = ["LAST", "is_of_a_model", "pack"]

# Without these nothing takes a folder for a whole model: they are sent when all else is there.
LAST = ("model.safetensors.index.json", "config.json", MANIFEST_FILE)
_OURS = (RUN_FILE, MEASURED_FILE)  # of this machine only
# Beside what the manifest lists: written, or put there, once the checkpoint is whole.
_BESIDE = re.compile(
    rf"{re.escape(MANIFEST_FILE)}|{re.escape(RESULTS_FILE)}|{re.escape(PAGE_FILE)}|README\.md"
    r"|(LICENSE|LICENCE|NOTICE|USE_POLICY)(\.(md|txt))?"
    r"|[^/]+\.(sig|asc|minisig|sigstore|sigstore\.json|intoto\.jsonl|pub|cdx\.json)"
)
# Of what the manifest lists: inputs may have been folders that hold anything.
_SUFFIXES = (
    *(".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm", ".py"),
    *(".jsonl", ".md", ".html"),
)


def pack(
    folder: Path, environment: Mapping[str, str], *, threads: int = 1, allow_paths: bool = False
) -> Parcel:
    """Give what is to be published of a checkpoint, every byte of it held against its manifest.

    `environment` are variables whose values may be secrets; `allow_paths` lets the names of home
    folders through.

    Raises
    ------
    InputError
        if there is no manifest, or a file holds a credential or names someone's home.
    DifferenceError
        if the folder is not what its manifest says.

    """
    manifest = read_manifest(folder)
    chosen, left_out = _choose(folder, manifest)
    items = tuple(sorted((item_of(folder, name) for name in chosen), key=_rank))
    verdict = verify(folder, threads=threads)
    if verdict.differences:
        raise DifferenceError(*verdict.differences)
    findings = tuple(find_secrets(items, environment, paths=not allow_paths))
    if findings:
        raise InputError(*findings)
    return Parcel(folder, items, left_out)


def is_of_a_model(name: str) -> bool:
    """Tell whether a file of this name, found at a target, is part of some model."""
    others = (".bin", ".pt", ".pth", ".gguf")
    return bool(_BESIDE.fullmatch(name)) or name.endswith((*_SUFFIXES, *others))


def _choose(folder: Path, manifest: Manifest) -> tuple[list[str], tuple[str, ...]]:
    """Give the names that are published, and those that are not."""
    listed = {*manifest.files, *manifest.shards}
    chosen, left_out = [], []
    for name in _names(folder):
        path = folder / name
        allowed = name.endswith(_SUFFIXES) and not any(
            part.startswith(".") for part in name.split("/")
        )
        if path.is_symlink() or not (allowed if name in listed else _BESIDE.fullmatch(name)):
            left_out.append(name)
        else:
            chosen.append(name)
    missing = [name for name in sorted(listed) if not os.path.lexists(folder / name)]
    if missing:
        raise DifferenceError(*(Problem(name, "is missing") for name in missing))
    return chosen, tuple(name for name in left_out if name not in _OURS)


def _names(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _rank(item: Item) -> tuple[int, str]:
    """Order weights first, and last what makes loaders take a folder for a whole model."""
    place = 2 + LAST.index(item.name) if item.name in LAST else int(not item.is_weights)
    return place, item.name
