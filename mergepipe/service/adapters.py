"""A base, and LoRA adapters that clients load and unload while it is served."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mergepipe.errors import InputError, Problem, printable
from mergepipe.execute import Resources
from mergepipe.service.guard import Refusal
from mergepipe.service.pool import Pool

if TYPE_CHECKING:
    from mergepipe.lora.composing import AdapterPool
    from mergepipe.model.local import LocalModel

__all__ = ["Adapters", "Loaded"]

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}")
_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter in memory, by the name and the path that its client gave."""

    name: str
    path: str
    pool: AdapterPool

    @property
    def fingerprint(self) -> str:
        """The digest of its weights."""
        return next(iter(self.pool.digests.values()))

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        tensors = [t for one in self.pool.modules.values() for t in (one.a, one.b, one.magnitudes)]
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(slots=True)
class Adapters:
    """Adapters of each key, all of one base; one thread may load and ask.

    Raises
    ------
    InputError
        if the base cannot be loaded, or there is no such folder.

    """

    pool: Pool
    resources: Resources
    folder: Path = field(init=False)
    base_fingerprint: str = field(init=False)
    by_key: dict[str, dict[str, Loaded]] = field(default_factory=dict)
    _models: Callable[[Loaded | None], LocalModel] = field(init=False)

    def __post_init__(self) -> None:
        import torch

        from mergepipe.lora.composed import AppliedModels

        if self.resources.threads:
            torch.set_num_threads(self.resources.threads)
        assert self.pool.load_from is not None, "a pool that adapters are loaded into"
        if not self.pool.load_from.is_dir():
            what = "there is no such folder to load adapters from"
            raise InputError(Problem(str(self.pool.load_from), what))
        self.folder = self.pool.load_from.resolve()
        models = AppliedModels(
            Path(self.pool.models[self.pool.base]["path"]),
            self.pool.base,
            dtype=self.pool.dtype,
            device=self.resources.device or "cpu",
        )
        self.base_fingerprint = models.base.fingerprint

        def made(loaded: Loaded | None) -> LocalModel:
            if loaded is None:
                return models.bare()
            models.check(loaded.pool)
            found = loaded.pool.composed([1.0], [1.0])
            return models.applied(loaded.pool, found, loaded.fingerprint)

        self._models = made

    @property
    def held(self) -> int:
        """How many are loaded, by all keys."""
        return sum(map(len, self.by_key.values()))

    def model(self, owner: str, name: str) -> LocalModel:
        """Give the base, or the base with an adapter.

        Raises
        ------
        Refusal
            if the key has loaded none of that name.

        """
        if name == self.pool.base:
            return self._models(None)
        loaded = self.by_key.get(owner, {}).get(name)
        if loaded is None:
            raise Refusal(404, f"The model `{printable(name, 100)}` does not exist.")
        return self._models(loaded)

    def load(self, owner: str, name: str, path: str) -> Loaded:
        """Read an adapter of the folder, and keep it under a name.

        Raises
        ------
        Refusal
            if there is none, it lies elsewhere, or the name is taken or none.
        InputError
            if it is no adapter of the base.

        """
        from mergepipe.lora.composing import open_adapters

        if not _NAME.fullmatch(name) or name == self.pool.base:
            what = "cannot be a name: letters, digits, '_', '.', ':' and '-', not the base's"
            raise Refusal(400, f"'{printable(name, 100)}' {what}")
        mine = self.by_key.setdefault(owner, {})
        if name in mine:
            raise Refusal(400, f"The lora adapter '{name}' has already been loaded.")
        loaded = Loaded(name, path, open_adapters({name: self._place(path)}))
        self._models(loaded)
        used = sum(one.bytes for names in self.by_key.values() for one in names.values())
        if used + loaded.bytes > self.pool.limits.memory:
            raise Refusal(400, f"no memory for another adapter: {self.held} are loaded, unload one")
        mine[name] = loaded
        return loaded

    def unload(self, owner: str, name: str) -> None:
        """Forget an adapter; its files stay.

        Raises
        ------
        Refusal
            if the key has loaded none of that name.

        """
        if self.by_key.get(owner, {}).pop(name, None) is None:
            raise Refusal(404, f"The lora adapter '{printable(name, 100)}' cannot be found.")

    def _place(self, path: str) -> Path:
        """Give a folder that lies in ours, links followed, with its files."""
        shown = f"'{printable(path, 200)}'"
        place = self._inside(path)
        files = [] if place is None else [self._inside(f"{place}/{file}") for file in _FILES]
        if place is None or None in files:
            raise Refusal(403, f"{shown} is not in the folder from which adapters may be loaded")
        if place == self.folder or not all(file and os.path.isfile(file) for file in files):  # noqa: PTH113 (never raises)
            fix = f"it is no folder with {' and '.join(_FILES)}"
            raise Refusal(404, f"No adapter found for {shown}: {fix}")
        return place

    def _inside(self, path: str) -> Path | None:
        """Give a place in the folder, links followed; None if it is outside."""
        try:
            place = (self.folder / path).resolve()
        except (OSError, ValueError, RuntimeError):  # a NUL, links in a circle
            return None
        return place if place.is_relative_to(self.folder) else None
