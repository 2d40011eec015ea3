"""Adapters merged here as one adapter, by what a recipe says, and asked on a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergepipe.errors import Problems
from mergepipe.model import Model
from mergepipe.model.fingerprint import file_digest, weight_digests
from mergepipe.recipe import Document
from mergepipe.recipe.adapter_server import CompositionSpec, read_adapter_server
from mergepipe.search.adapter_server import AdapterServer, Tell
from mergepipe.search.served_adapter import ServedAdapter

if TYPE_CHECKING:
    from mergepipe.lora.composing import AdapterPool

__all__ = ["BASE", "Compositions"]

BASE = "base"
_CONFIG = "adapter_config.json"


@dataclass(slots=True)
class Compositions:
    """Adapters by label, and the server that candidates made of them are loaded on.

    Raises
    ------
    InputError
        if adapters cannot be composed with each other.

    """

    adapters: Mapping[str, Path]
    server: AdapterServer
    merge: CompositionSpec  # what the recipe says, untuned
    dtype: str = "float32"
    digests: Mapping[str, Any] = field(init=False)
    _pool: AdapterPool | None = None

    def __post_init__(self) -> None:
        self.digests = {
            label: [weight_digests(folder), file_digest(folder / _CONFIG)]
            for label, folder in self.adapters.items()
        }

    @contextmanager
    def session(self, tell: Tell | None = None) -> Iterator[None]:
        """Begin and end with no adapters of ours on the server, and see that it takes one.

        Raises
        ------
        InputError, EnvironmentFault
            if it cannot be asked for the base, or does not take the first merge.

        """
        _ = self.server.base.fingerprint
        with self.server.session(tell):
            name = self.server.name("a test")
            self.server.load(name, lambda out: self.write(self.merge, out))
            self.server.drop(name)
            yield

    def candidate(self, document: Document) -> Model:
        """Give the model of a recipe whose searched places are filled.

        Raises
        ------
        InputError
            if these values make no recipe.

        """
        problems = Problems()
        spec = read_adapter_server(document, problems)
        problems.raise_any()
        assert spec is not None, "a recipe without problems"
        return self.model(spec.merge, "candidate")

    def alone(self, label: str) -> Model:
        """Give the base, or the base with one adapter."""
        if label == BASE:
            return self.server.base
        return self.model(CompositionSpec("lora_sum", {label: 1.0}, {}), label)

    def composed(self, keep: Sequence[float], weights: Sequence[float]) -> Model:
        """Give a composition of all adapters: see `mergepipe.lora.composing`."""
        factors = dict(zip(self.adapters, weights, strict=True))
        shares = dict(zip(self.adapters, keep, strict=True))
        return self.model(CompositionSpec("lora_composition", factors, shares), "candidate")

    def model(self, spec: CompositionSpec, name: str) -> ServedAdapter:
        """Give the base with a merge of adapters; nothing is made yet."""
        digests = {label: self.digests[label] for label in spec.weights}
        parts: list[object] = [spec.method, digests, dict(spec.weights), dict(spec.densities)]
        made_of = [*parts, spec.rank, self.dtype]
        return ServedAdapter(name, self.server, made_of, lambda out: self.write(spec, out))

    def write(self, spec: CompositionSpec, out: Path, *, overwrite: bool = False) -> None:
        """Write a merge of adapters as one PEFT adapter.

        Raises
        ------
        InputError, EnvironmentFault
            if they cannot be merged, or the disk fails.

        """
        from mergepipe.lora.combining import combine

        if spec.method == "lora_sum":
            folders = [str(self.adapters[label]) for label in spec.weights]
            combine(
                folders,
                list(spec.weights.values()),
                out,
                rank=spec.rank,
                dtype=self.dtype,
                overwrite=overwrite,
            )
            return
        pool = self.pool()
        keep = [spec.densities.get(label, 1.0) for label in pool.labels]
        weights = [spec.weights.get(label, 0.0) for label in pool.labels]
        pool.write(keep, weights, out, dtype=self.dtype, overwrite=overwrite)

    def pool(self) -> AdapterPool:
        """Give the adapters in memory, as they are composed.

        Raises
        ------
        InputError
            if they are not alike.

        """
        from mergepipe.lora.composing import open_adapters

        if self._pool is None:
            self._pool = open_adapters(self.adapters)
        return self._pool
