"""Opening a checkpoint: its config and headers read, every fault of it reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergepipe.checkpoint.adapter import apply_adapter
from mergepipe.checkpoint.config import CONFIG, check_config, read_config
from mergepipe.checkpoint.files import Place
from mergepipe.checkpoint.folder import Weights, read_weights
from mergepipe.checkpoint.source import ModelSource, adapter_place, model_place
from mergepipe.checkpoint.tensors import LowRank, Stored
from mergepipe.errors import Problems


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk: its config, and where its tensors are. No values are loaded.

    A model may be weights alone; then `folder` is their file, and there is no configuration.

    `tensors` is in storage order, with an adapter's whole tensors in place; `low_rank` holds the
    adapter's updates by tensor name. `aliases` maps a pickled tensor's name to the first name
    that shares exactly its storage; both names are in `tensors`. `tokenizer` is the folder of
    its tokenizer where that is another model's.
    """

    label: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    low_rank: Mapping[str, LowRank]
    aliases: Mapping[str, str]
    source: ModelSource
    tokenizer: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of its tokenizer: its own, unless it was given another."""
        return self.tokenizer or self.folder

    @property
    def is_bare(self) -> bool:
        """Whether it is weights alone, without configuration and tokenizer."""
        return not self.config


def open_checkpoint(
    source: ModelSource, problems: Problems, *, local_files_only: bool = False
) -> Checkpoint | None:
    """Open the checkpoint of `source` from headers and JSON alone; None if it cannot be used.

    Never raises for bad input: every fault found goes to `problems`. A hub model is fetched into
    the hub's cache first, unless `local_files_only`.
    """
    before = len(problems.found)
    place = model_place(source, problems, local_only=local_files_only)
    if place is None:
        return None
    config, weights = _read_model(place, problems)
    low_rank: Mapping[str, LowRank] = {}
    if source.adapter or source.adapter_hub:
        adapter = adapter_place(source, problems, local_only=local_files_only)
        if adapter and weights.tensors:
            weights, low_rank = apply_adapter(adapter, weights, config or {}, problems)
    if config is None or len(problems.found) > before:
        return None
    return Checkpoint(
        label=source.label,
        folder=place.folder,
        config=config,
        tensors=weights.tensors,
        low_rank=low_rank,
        aliases=weights.aliases,
        source=source,
    )


def _read_model(place: Place, problems: Problems) -> tuple[dict[str, Any] | None, Weights]:
    """Config and weights of a model folder, held against each other if both can be read."""
    before = len(problems.found)
    weights = read_weights(place, problems)
    if place.folder.is_file():
        return {}, weights
    is_adapter = not weights.tensors and (place.folder / "adapter_config.json").exists()
    if is_adapter and not (place.folder / CONFIG).exists():
        return None, weights
    config = read_config(place, problems)
    if config is not None and len(problems.found) == before:
        check_config(config, weights.tensors, place, problems)
    return config, weights
