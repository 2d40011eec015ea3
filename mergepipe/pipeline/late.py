"""A checkpoint folder as a model that is loaded when it is first asked, not before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mergepipe.model import Ability, Generation, Prompt, Score, Usage

if TYPE_CHECKING:
    from mergepipe.model.local import LocalModel
    from mergepipe.model.traces import Trace

__all__ = ["LateModel"]


class LateModel:
    """A `Model` and a `Classifier`; what is known of it without loading is said without loading.

    So an evaluation whose result is in the cache costs no more than reading the files once.
    """

    def __init__(
        self, folder: Path, name: str, *, dtype: str = "float32", device: str = "cpu"
    ) -> None:
        self.name, self._folder, self._dtype, self._device = name, folder, dtype, device

    @cached_property
    def fingerprint(self) -> str:
        """See `Model`."""
        from mergepipe.model.companions import companions_of
        from mergepipe.model.fingerprint import fingerprint_of, precision_of, weight_digests

        weights = weight_digests(self._folder)
        precision = precision_of(self._dtype, self._device)
        return fingerprint_of(companions_of(self._folder), precision, weights)

    @property
    def location(self) -> Mapping[str, str]:
        """See `Located`."""
        return {"path": str(self._folder.resolve())}

    @cached_property
    def _model(self) -> LocalModel:
        from mergepipe.model.load import local_model

        return local_model(self._folder, self.name, dtype=self._dtype, device=self._device)

    @property
    def abilities(self) -> frozenset[Ability]:
        """See `Model`."""
        return self._model.abilities

    @property
    def usage(self) -> Usage:
        """See `Model`."""
        return self._model.usage if "_model" in self.__dict__ else Usage()

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Classifier`."""
        return self._model.classes

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """See `Model`."""
        return self._model.loglikelihood(requests)

    def loglikelihood_rolling(
        self, texts: Sequence[str], *, stride: int | None = None
    ) -> list[Score]:
        """See `Model`."""
        return self._model.loglikelihood_rolling(texts, stride=stride)

    def trace(self, requests: Sequence[tuple[str, str]]) -> list[Trace]:
        """See `Traceable`."""
        return self._model.trace(requests)

    def trace_texts(self, texts: Sequence[str], *, stride: int | None = None) -> list[Trace]:
        """See `Traceable`."""
        return self._model.trace_texts(texts, stride=stride)

    @property
    def local(self) -> LocalModel:
        """The model, loaded."""
        return self._model

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        """See `Model`."""
        return self._model.generate(
            prompts, stop=stop, max_tokens=max_tokens, temperature=temperature, seed=seed
        )

    def lossy(self, texts: Sequence[str]) -> list[bool]:
        """See `mergepipe.evaluate.lossy.Expressing`."""
        return self._model.lossy(texts)

    def classify(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """See `Classifier`."""
        return self._model.classify(texts)
