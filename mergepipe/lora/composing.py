"""Adapters of one base -> one adapter of their rank, by asymmetric composition (Evo-Merging).

    A = Σ_i β_i S(A_i, α_i),    B = Σ_i β_i B_i,    ΔW = γ B A

S keeps the largest share α_i of a matrix by magnitude and zeroes the rest; B is never thinned. Of
each module all of this is apart. A and B are summed by themselves, so that every B_i meets every
A_j (N² terms), and an adapter's own term has β_i². With all α_i = 1 it is LoraHub's composition.

Chen et al. 2025, "Black-box Model Merging for Language-Model-as-a-Service with Massive Model
Repositories", https://arxiv.org/abs/2509.12951; Huang et al. 2023, "LoraHub",
https://arxiv.org/abs/2307.13269.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergepipe.checkpoint import Stored, read_range
from mergepipe.checkpoint.adapter import Adapter, Pair, read_adapter, sorted_out
from mergepipe.checkpoint.files import Place, report
from mergepipe.errors import InputError, NonFiniteError, Problem, Problems
from mergepipe.lora.writing import (
    WEIGHTS,
    TensorFile,
    dtype_named,
    factor_names,
    low_rank_fields,
    rounded,
    write_config,
)
from mergepipe.model.fingerprint import file_digest
from mergepipe.write import check_target, new_folder

__all__ = ["AdapterPool", "Factors", "kept_count", "open_adapters"]

_MATRIX = 2
_KEPT_FIELDS = ("base_model_name_or_path", "revision", "fan_in_fan_out", "task_type")


@dataclass(frozen=True, slots=True)
class Factors:
    """One module's factors: A [adapter, r, in], B [adapter, out, r], fp32, and γ.

    `magnitudes` has the |A| of each adapter in descending order.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitudes: Tensor

    def composed(self, keep: Sequence[float], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Give B [out, r] and A [r, in] of the composition."""
        beta = torch.tensor(weights, dtype=torch.float32)
        a = torch.where(self.a.abs() >= self._thresholds(keep)[:, None, None], self.a, 0.0)
        return torch.tensordot(beta, self.b, 1), torch.tensordot(beta, a, 1)

    def _thresholds(self, keep: Sequence[float]) -> Tensor:
        """The k-th largest |A| of each adapter; infinite where none is kept."""
        counts = [kept_count(share, self.magnitudes.shape[1]) for share in keep]
        found = [
            row[count - 1] if count else torch.tensor(torch.inf)
            for row, count in zip(self.magnitudes, counts, strict=True)
        ]
        return torch.stack(found)


def kept_count(share: float, size: int) -> int:
    """How many of `size` entries a share keeps: one at least, unless the share is 0.

    >>> [kept_count(share, 10) for share in (0.0, 0.01, 0.25, 1.0)]
    [0, 1, 2, 10]
    """
    return max(1, round(share * size)) if share else 0


@dataclass(frozen=True, slots=True)
class AdapterPool:
    """Adapters of one base with the same modules, ranks and scales, held in memory."""

    labels: tuple[str, ...]
    modules: Mapping[str, Factors]
    digests: Mapping[str, str]  # of each adapter's weights
    config: Mapping[str, Any]

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max(one.a.shape[1] for one in self.modules.values())

    @property
    def is_transposed(self) -> bool:
        """Whether the base stores its matrices as [in, out]."""
        return bool(self.config.get("fan_in_fan_out"))

    def composed(
        self, keep: Sequence[float], weights: Sequence[float]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Give B and A of each module for shares α in [0, 1] and factors β, one for each adapter.

        Raises
        ------
        InputError
            if a share is outside of its range, or they are not as many as the adapters.

        """
        self._check(keep, weights)
        return {name: one.composed(keep, weights) for name, one in self.modules.items()}

    def write(
        self,
        keep: Sequence[float],
        weights: Sequence[float],
        out: Path,
        *,
        dtype: str = "float32",
        overwrite: bool = False,
    ) -> None:
        """Write the composition as a PEFT adapter of the same rank and scale.

        Raises
        ------
        InputError, EnvironmentFault
            as `composed`; if it cannot be written, or has no place in that dtype.

        """
        kind = dtype_named(dtype)
        check_target(out, overwrite=overwrite)
        found = self.composed(keep, weights)
        names = {module: factor_names(module, is_embedding=False) for module in found}
        most = {
            name: (kind, tuple(factor.shape))
            for module, pair in found.items()
            for name, factor in zip(names[module], pair, strict=True)
        }
        with new_folder(out, overwrite=overwrite) as folder:
            with TensorFile(folder / WEIGHTS, most) as file:
                for module, pair in found.items():
                    for name, factor in zip(names[module], pair, strict=True):
                        file.add(name, rounded(factor, kind, module))
            write_config(folder, self._config())

    def _config(self) -> dict[str, Any]:
        ranks = {module: one.a.shape[1] for module, one in self.modules.items()}
        alphas = {module: one.scale * one.a.shape[1] for module, one in self.modules.items()}
        fields = low_rank_fields(ranks)
        common = next(iter(alphas.values()))
        uneven = {module: alpha for module, alpha in alphas.items() if alpha != common}
        return {
            **fields,
            "lora_alpha": common,
            "alpha_pattern": uneven,
            "target_modules": self.config.get("target_modules") or sorted(ranks),
            **{field: self.config[field] for field in _KEPT_FIELDS if field in self.config},
        }

    def _check(self, keep: Sequence[float], weights: Sequence[float]) -> None:
        for what, given in (("shares", keep), ("weights", weights)):
            if len(given) != len(self.labels):
                raise InputError(f"{len(given)} {what} for {len(self.labels)} adapters")
        if wrong := [share for share in keep if not 0 <= share <= 1]:
            raise InputError(f"a share of {wrong[0]} is not between 0 and 1")


def open_adapters(adapters: Mapping[str, Path]) -> AdapterPool:
    """Read adapters, by label.

    Raises
    ------
    InputError
        naming each that cannot be composed with the first: other modules, ranks or scales.

    """
    problems, read = Problems(), {}
    for label, folder in adapters.items():
        place = Place(label, folder, label)
        adapter = read_adapter(place, problems)
        if adapter is not None:
            read[label] = (place, adapter, _pairs(place, adapter, problems))
    problems.raise_any()
    if not read:
        raise InputError("no adapters to compose")
    _, first, pairs = next(iter(read.values()))
    for place, adapter, theirs in read.values():
        report(problems, place.of(adapter.file), _unlike(first, pairs, adapter, theirs))
    problems.raise_any()
    modules = {
        module: _factors([(p, them[module]) for p, _, them in read.values()], first, module)
        for module in pairs
    }
    digests = {
        label: file_digest(place.folder / one.file) for label, (place, one, _) in read.items()
    }
    return AdapterPool(tuple(read), modules, digests, first.config)


def _pairs(place: Place, adapter: Adapter, problems: Problems) -> dict[str, Pair]:
    pairs, whole, faults = sorted_out(adapter.tensors)
    if whole:
        faults.append(f"stores '{next(iter(whole))}' whole: only updates can be composed")
    for module, pair in pairs.items():
        faults += [f"'{module}': {fault}" for fault in _pair_faults(module, pair, adapter)]
    report(problems, place.of(adapter.file), faults, "leave that adapter out")
    return pairs


def _pair_faults(module: str, pair: Pair, adapter: Adapter) -> list[str]:
    a, b, rank = pair.a, pair.b, adapter.scaling.rank_of(module)
    if a is None or b is None:
        return ["has only one of lora_A and lora_B"]
    if pair.is_embedding:
        return ["updates an embedding, which is not supported"]
    if any(len(one.shape) != _MATRIX or not one.is_float for one in (a, b)):
        return ["only matrices of floats are supported"]
    return [] if (a.shape[0], b.shape[1]) == (rank, rank) else [f"is not of its rank {rank}"]


def _unlike(
    first: Adapter, pairs: Mapping[str, Pair], other: Adapter, theirs: Mapping[str, Pair]
) -> list[str]:
    """Say how an adapter differs from the first in what must be the same."""
    if set(pairs) != set(theirs):
        return [f"'{min(set(pairs) ^ set(theirs))}' is updated by some adapters only"]
    if bool(first.config.get("fan_in_fan_out")) != bool(other.config.get("fan_in_fan_out")):
        return ["fan_in_fan_out is not that of the first adapter"]
    faults = []
    for module, pair in pairs.items():
        ours = [one.shape for one in (pair.a, pair.b) if one is not None]
        others = [one.shape for one in (theirs[module].a, theirs[module].b) if one is not None]
        if ours != others:
            faults.append(f"'{module}' has the shapes {others}, in the first adapter {ours}")
        elif first.scaling.scale_of(module) != other.scaling.scale_of(module):
            faults.append(f"'{module}' has another alpha / r than in the first adapter")
    return faults


def _factors(several: Sequence[tuple[Place, Pair]], adapter: Adapter, module: str) -> Factors:
    a = torch.stack([_read(pair.a, place) for place, pair in several])
    b = torch.stack([_read(pair.b, place) for place, pair in several])
    magnitudes = a.abs().flatten(1).sort(dim=1, descending=True).values
    return Factors(a, b, adapter.scaling.scale_of(module), magnitudes)


def _read(stored: Stored | None, place: Place) -> Tensor:
    assert stored is not None, "checked before"
    values = read_range(stored, 0, stored.numel).float().reshape(stored.shape)
    if not values.isfinite().all():
        problem = Problem(f"{place.of()}: {stored.name}", "holds nan or inf", "leave it out")
        raise NonFiniteError(problem)
    return values
