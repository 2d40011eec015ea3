"""The files that decide what a merge gives, and whether they are still what they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergepipe.checkpoint import Checkpoint
from mergepipe.digest import digest_file, digest_header
from mergepipe.errors import InputError, Problem
from mergepipe.write import disk_faults

__all__ = ["InputFile", "check_unchanged", "input_files"]

_CONFIGS = (
    "config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "adapter_config.json",
)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of a model or of its adapter, as it was when the run began.

    `digest` is that of a safetensors file's header, or of a whole JSON file; empty for pickles.
    """

    path: Path
    is_adapter: bool
    size: int
    mtime_ns: int
    digest: str

    @property
    def shown(self) -> str:
        """`expert/model.safetensors`."""
        adapter = " (adapter)" if self.is_adapter else ""
        return f"{self.path.parent.name}/{self.path.name}{adapter}"


def input_files(checkpoints: Mapping[str, Checkpoint]) -> dict[str, tuple[InputFile, ...]]:
    """Give the files of each model that its tensors come from, by label.

    Raises
    ------
    EnvironmentFault
        if one cannot be read.

    """
    return {label: tuple(_files(one)) for label, one in checkpoints.items()}


def _files(checkpoint: Checkpoint) -> Iterator[InputFile]:
    stored = [*checkpoint.tensors.values()]
    for update in checkpoint.low_rank.values():
        stored += [update.a, update.b]
    weights = {one.file: None for one in stored}  # in order, each once
    folders = {checkpoint.folder: None} | {file.parent: None for file in weights}
    if checkpoint.is_bare:
        folders = {}
    configs = [folder / name for folder in folders for name in _CONFIGS]
    for path in (*weights, *(path for path in configs if path.is_file())):
        with disk_faults(path):
            status = path.stat()
            digest = _digest(path)
        is_adapter = checkpoint.folder not in (path, path.parent)
        yield InputFile(path, is_adapter, status.st_size, status.st_mtime_ns, digest)


def _digest(path: Path) -> str:
    if path.suffix == ".safetensors":
        return digest_header(path)
    return digest_file(path) if path.suffix == ".json" else ""


def check_unchanged(files: Mapping[str, tuple[InputFile, ...]]) -> None:
    """Refuse a result of files that were written to, or replaced, while they were read.

    Raises
    ------
    InputError
        naming each of them.

    """
    everything = dict.fromkeys(one for several in files.values() for one in several)
    changed = [one for one in everything if not _is_as_it_was(one)]
    if changed:
        what = "changed while it was being read"
        raise InputError(*(Problem(one.shown, what, "run again") for one in changed))


def _is_as_it_was(one: InputFile) -> bool:
    try:
        status = one.path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (one.size, one.mtime_ns)
