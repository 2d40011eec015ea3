"""A base whose adapter changes from one question to the next, in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mergepipe.errors import InputError, Problem
from mergepipe.lora.composing import AdapterPool

if TYPE_CHECKING:
    from mergepipe.model.local import LocalModel

__all__ = ["AppliedModels", "ComposedModels"]


class AppliedModels:
    """A base with one adapter after the other: W = W₀ + γ B A, in the module itself.

    Sums are in fp32 and rounded once, to `dtype`. A model that it gave must not be asked any more
    once the next one is made. Of matrices that adapters update, W₀ is held beside.

    Raises
    ------
    InputError
        if the base cannot be loaded.

    """

    def __init__(
        self, base: Path, name: str = "composed", *, dtype: str = "float32", device: str = "cpu"
    ) -> None:
        from mergepipe.model.load import local_model

        self.base = local_model(base, name, dtype=dtype, device=device)
        self._folder = base
        self._parameters = dict(self.base.module.named_parameters())
        self._starts: dict[str, Tensor] = {}
        self._changed: set[str] = set()

    def check(self, pool: AdapterPool) -> None:
        """Refuse adapters that are made for another base.

        Raises
        ------
        InputError
            naming a matrix that the base has not.

        """
        for module, factors in pool.modules.items():
            shape = (factors.b.shape[1], factors.a.shape[2])
            weight = self._weight(module, pool)
            if weight is None or tuple(weight.shape) != shape:
                what = f"the base has no matrix '{module}.weight' of shape {list(shape)}"
                fix = "are the adapters made for this base?"
                raise InputError(Problem(str(self._folder), what, fix))

    def applied(
        self, pool: AdapterPool, found: Mapping[str, tuple[Tensor, Tensor]], made_of: object
    ) -> LocalModel:
        """Give the model with B and A of each module, of adapters that were checked.

        `made_of`, as JSON has it, tells this model from every other one of the base.
        """
        with torch.no_grad():
            for module in self._changed - set(found):
                self._parameters[f"{module}.weight"].copy_(self._starts[module])
            for module, (low_b, low_a) in found.items():
                weight = self._weight(module, pool)
                assert weight is not None, "checked before"
                stored = self._parameters[f"{module}.weight"]
                if module not in self._starts:
                    self._starts[module] = stored.detach().clone()
                start = self._starts[module].float()
                start = start.T if pool.is_transposed else start
                b, a = low_b.to(start.device), low_a.to(start.device)
                weight.copy_(torch.addmm(start, b, a, alpha=pool.modules[module].scale))
        self._changed = set(found)
        said = json.dumps([self.base.fingerprint, made_of])
        return replace(self.base, fingerprint=hashlib.sha256(said.encode()).hexdigest()[:32])

    def bare(self) -> LocalModel:
        """Give the base by itself."""
        with torch.no_grad():
            for module in self._changed:
                self._parameters[f"{module}.weight"].copy_(self._starts[module])
        self._changed = set()
        return self.base

    def _weight(self, module: str, pool: AdapterPool) -> Tensor | None:
        """Give a matrix as [out, in]."""
        parameter = self._parameters.get(f"{module}.weight")
        return parameter if parameter is None or not pool.is_transposed else parameter.T


class ComposedModels:
    """A base with compositions of a pool's adapters: see `AppliedModels`.

    Raises
    ------
    InputError
        if the base cannot be loaded, or has no matrix that an adapter updates.

    """

    def __init__(self, base: Path, pool: AdapterPool, name: str = "composed") -> None:
        self.pool = pool
        self._models = AppliedModels(base, name)
        self._models.check(pool)

    def composed(self, keep: Sequence[float], weights: Sequence[float]) -> LocalModel:
        """Give the model for these shares α and factors β: see `AdapterPool.composed`."""
        found = self.pool.composed(keep, weights)
        made_of = [dict(self.pool.digests), list(keep), list(weights)]
        return self._models.applied(self.pool, found, made_of)
