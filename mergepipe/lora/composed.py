"""A base whose adapter changes from one question to the next, in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mergepipe.errors import InputError, Problem
from mergepipe.lora.composing import AdapterPool

if TYPE_CHECKING:
    from mergepipe.model.local import LocalModel

__all__ = ["ComposedModels"]


class ComposedModels:
    """A base with compositions of a pool's adapters: W = W₀ + γ B A, fp32, in the module itself.

    A model that it gave must not be asked any more once the next one is made.

    Raises
    ------
    InputError
        if the base cannot be loaded, or has no matrix that an adapter updates.

    """

    def __init__(self, base: Path, pool: AdapterPool, name: str = "composed") -> None:
        from mergepipe.model.load import local_model

        self.pool = pool
        self._model = local_model(base, name)
        parameters = dict(self._model.module.named_parameters())
        transposed = bool(pool.config.get("fan_in_fan_out"))
        self._places: dict[str, tuple[Tensor, Tensor]] = {}  # the parameter [out, in], and W₀
        for module, factors in pool.modules.items():
            parameter = parameters.get(f"{module}.weight")
            shape = (factors.b.shape[1], factors.a.shape[2])
            weight = parameter if parameter is None or not transposed else parameter.T
            if weight is None or tuple(weight.shape) != shape:
                what = f"the base has no matrix '{module}.weight' of shape {list(shape)}"
                raise InputError(Problem(str(base), what, "are the adapters made for this base?"))
            self._places[module] = weight, weight.detach().clone()

    def composed(self, keep: Sequence[float], weights: Sequence[float]) -> LocalModel:
        """Give the model for these shares α and factors β: see `AdapterPool.composed`."""
        found = self.pool.composed(keep, weights)
        with torch.no_grad():
            for module, (b, a) in found.items():
                weight, start = self._places[module]
                weight.copy_(torch.addmm(start, b, a, alpha=self.pool.modules[module].scale))
        made = [self._model.fingerprint, dict(self.pool.digests), list(keep), list(weights)]
        fingerprint = hashlib.sha256(json.dumps(made).encode()).hexdigest()[:32]
        return replace(self._model, fingerprint=fingerprint)
