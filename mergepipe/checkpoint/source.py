"""What a recipe says of a model, and the folder where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mergepipe.checkpoint.files import Place, why_unreadable
from mergepipe.checkpoint.folder import is_weight_file
from mergepipe.errors import Problems

_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.spm", "*.tiktoken", "*.py", "tokenizer*"]
_FILES += ["README.md", "LICENSE*", "LICENCE*"]  # which say whose the model is
_SAFETENSORS = [*_FILES, "*.safetensors"]
_PICKLES = [*_FILES, "pytorch_model*.bin", "adapter_model.bin"]
# Subfolders hold the same weights in other formats; `consolidated` is Mistral's copy.
_IGNORED = ["*/*", "consolidated*"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One model of a recipe, its paths already resolved against the recipe's folder.

    Either `path` or `hub` (`org/name`, with an optional `revision`) is set; the same holds for
    the optional PEFT LoRA adapter.
    """

    label: str
    path: Path | None
    hub: str | None
    revision: str | None
    adapter: Path | None
    adapter_hub: str | None = None
    adapter_revision: str | None = None


@dataclass(frozen=True, slots=True)
class _Location:
    """A folder on this machine, or a repository on the hub."""

    label: str
    path: Path | None
    hub: str | None
    revision: str | None


def model_place(source: ModelSource, problems: Problems, *, local_only: bool) -> Place | None:
    """Find the folder of a model, fetched from the hub if need be; None if there is none."""
    where = _Location(source.label, source.path, source.hub, source.revision)
    return _place(where, problems, local_only)


def adapter_place(source: ModelSource, problems: Problems, *, local_only: bool) -> Place | None:
    """Find the folder of an adapter, fetched from the hub if need be; None if there is none."""
    where = _Location(source.label, source.adapter, source.adapter_hub, source.adapter_revision)
    return _place(where, problems, local_only)


def _place(where: _Location, problems: Problems, local_only: bool) -> Place | None:
    if where.path is not None:
        return _local_place(where.label, where.path, problems)
    assert where.hub is not None
    folder = _fetch(where.label, where.hub, where.revision, problems, local_only=local_only)
    return Place(where.label, folder, where.hub) if folder else None


def _local_place(label: str, path: Path, problems: Problems) -> Place | None:
    """Give the place of a local folder that exists and can be listed, or of a weight file."""
    place = Place(label, path, path.name or path.resolve().name)
    if is_weight_file(path):
        return place
    try:
        next(path.iterdir(), None)
    except FileNotFoundError:
        problems.add(place.of(), f"{path} does not exist", "check the path in the recipe")
    except NotADirectoryError:
        fix = "give the directory with config.json, or weights: .safetensors, .bin, .pt, .pth"
        problems.add(place.of(), f"{path} is a file, not a directory", fix)
    except (OSError, ValueError, RuntimeError) as error:
        problems.add(place.of(), f"{path} {why_unreadable(error)}")
    else:
        return place
    return None


def _fetch(
    label: str, hub: str, revision: str | None, problems: Problems, *, local_only: bool
) -> Path | None:
    """Local snapshot of a hub repository: safetensors if it has any, else pickles."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,
        RevisionResolutionError,
    )

    def fetch(patterns: list[str]) -> Path:
        found = snapshot_download(
            hub,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=_IGNORED,
            local_files_only=local_only,
        )
        return Path(found)

    try:
        folder = fetch(_SAFETENSORS)
        return folder if any(folder.glob("*.safetensors")) else fetch(_PICKLES)
    except (OSError, ValueError, HTTPError, RevisionResolutionError) as error:
        shown = hub if label == hub else f"{label} ({hub})"
        reason = " ".join(str(error).split())[:300]
        if local_only:
            what, fix = "it is not in the hub's cache", "`mergepipe run` fetches it"
        else:
            what = f"the hub did not give it: {reason}"
            fix = "check the name, the network, and HF_TOKEN for gated models"
        problems.add(shown, f"no local folder '{hub}' exists, and {what}", fix)
    return None
