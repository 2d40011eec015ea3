"""Adapters of one base -> one adapter, whose update is the weighted sum of theirs.

    ΔW = Σ_i w_i γ_i B_i A_i,    γ_i = α_i / r_i, or α_i / √r_i (rsLoRA)

`cat` stacks the factors, [w_1 γ_1 B_1, w_2 γ_2 B_2, …] and [A_1; A_2; …]: exact, of rank Σ r_i.
`svd` gives the nearest update of a smaller rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from mergepipe.checkpoint import Stored, read_range
from mergepipe.checkpoint.adapter import Adapter, Pair, read_adapter, sorted_out
from mergepipe.checkpoint.files import Place, report
from mergepipe.errors import InputError, NonFiniteError, Problem, Problems, printable
from mergepipe.lora.factors import decompose_sum
from mergepipe.lora.report import Part, Result
from mergepipe.lora.sources import adapter_named
from mergepipe.lora.writing import (
    WEIGHTS,
    TensorFile,
    dtype_named,
    factor_names,
    low_rank_fields,
    rounded,
    write_config,
)
from mergepipe.write import check_target, new_folder

__all__ = ["How", "combine"]

How: TypeAlias = Literal["cat", "svd"]
_MATRIX = 2
# Which modules PEFT looks for; these fields are kept where all adapters say the same.
_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_FIX = "merge that adapter into the base with PEFT, or `mergepipe run` with {path, adapter}"


@dataclass(frozen=True, slots=True)
class _Given:
    """An adapter to be added up: its weight, and its updates by module."""

    place: Place
    adapter: Adapter
    pairs: Mapping[str, Pair]
    weight: float


@dataclass(frozen=True, slots=True)
class _Term:
    """One adapter's share in a module's update: `scale` * B @ A, weight and γ in the scale."""

    where: str
    a: Stored
    b: Stored
    scale: float
    is_embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the update."""
        return self.b.shape[0], self.a.shape[1]


def combine(
    adapters: Sequence[str],
    weights: Sequence[float],
    out: Path,
    *,
    how: str | None = None,
    rank: int | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Result:
    """Write the weighted sum of adapters, exactly or at a lower rank.

    `how` is `cat` or `svd`; None means `svd` if a rank is given.

    Raises
    ------
    InputError
        if an adapter or an option is wrong, or they cannot be added up.
    EnvironmentFault
        if a file cannot be read or written.

    """
    kind, way = dtype_named(dtype), _way(how, rank)
    check_target(out, overwrite=overwrite)
    problems = Problems()
    given = _opened(adapters, weights, problems)
    terms = _terms(given, problems)
    problems.raise_any()
    with new_folder(out, overwrite=overwrite) as folder:
        with TensorFile(folder / WEIGHTS, _most(terms, kind)) as file:
            parts = tuple(
                _add(file, module, several, how=way, rank=rank, dtype=kind)
                for module, several in terms.items()
            )
        write_config(folder, _config(parts, given))
    return Result(out, parts, tuple(problems.warnings))


def _way(how: str | None, rank: int | None) -> How:
    if how not in (None, "cat", "svd"):
        raise InputError(Problem("--how", f"'{how}' is not known", "give cat or svd"))
    if how == "cat" and rank is not None:
        what = "cat is exact, so that its rank is the sum of all ranks"
        raise InputError(Problem("--rank", what, "leave it out, or give --how svd"))
    return "cat" if how == "cat" or (how is None and rank is None) else "svd"


def _opened(
    adapters: Sequence[str], weights: Sequence[float], problems: Problems
) -> tuple[_Given, ...]:
    """Read the adapters' configs and headers, and hold them against each other."""
    if len(weights) != len(adapters):
        what = f"{len(weights)} weights for {len(adapters)} adapters"
        problems.add("--weights", what, "give one for each, in their order")
    places = [adapter_named(text, problems) for text in adapters]
    problems.raise_any()
    given = []
    for place, weight in zip(places, weights, strict=True):
        assert place is not None
        adapter = read_adapter(place, problems)
        if adapter is None:
            continue
        pairs, whole, faults = sorted_out(adapter.tensors)
        report(problems, place.of(adapter.file), faults, _FIX)
        if whole:
            what = f"stores '{next(iter(whole))}' whole (modules_to_save, or a bias)"
            problems.add(place.of(adapter.file), f"{what}: only updates can be added up", _FIX)
        given.append(_Given(place, adapter, pairs, weight))
    _compare(given, problems)
    return tuple(given)


def _compare(given: Sequence[_Given], problems: Problems) -> None:
    """Refuse adapters that apply their factors in different ways; warn of different bases."""
    for one in given[1:]:
        ours, theirs = (each.adapter.config for each in (given[0], one))
        names = [printable(c.get("base_model_name_or_path")) for c in (ours, theirs)]
        where = one.place.of()
        if names[0] != names[1]:
            first = given[0].place.of()
            problems.warn(where, f"its base is {names[1]}, that of {first} is {names[0]}")
        if bool(ours.get("fan_in_fan_out")) != bool(theirs.get("fan_in_fan_out")):
            what = f"fan_in_fan_out is not that of {given[0].place.of()}"
            problems.add(where, what, "one of them is wrong for this base: correct it")


def _terms(given: Sequence[_Given], problems: Problems) -> dict[str, tuple[_Term, ...]]:
    """Give the terms of every module's sum, in the adapters' order."""
    terms: dict[str, tuple[_Term, ...]] = {}
    for one in given:
        faults = []
        for module, pair in one.pairs.items():
            found = _term(module, pair, one)
            others = terms.setdefault(module, ())
            fault = found if isinstance(found, str) else _misfit(found, others)
            if fault:
                faults.append(f"'{module}': {fault}")
            elif isinstance(found, _Term) and found.scale:
                terms[module] = (*others, found)
        report(problems, one.place.of(one.adapter.file), faults)
    wanted = {module: several for module, several in terms.items() if several}
    if given and not wanted and not problems.found:
        problems.add("--weights", "nothing is left to add up: all are 0, or no adapter has updates")
    return wanted


def _term(module: str, pair: Pair, given: _Given) -> _Term | str:
    """Give one adapter's term in a module's sum, or what is wrong with it."""
    a, b = pair.a, pair.b
    if a is None or b is None:
        return "has only one of lora_A and lora_B"
    rank = given.adapter.scaling.rank_of(module)
    shapes = f"shapes A {list(a.shape)}, B {list(b.shape)}"
    if any(len(one.shape) != _MATRIX or not one.is_float for one in (a, b)):
        return f"{shapes}: only matrices of floats are supported"
    if (a.shape[0], b.shape[1]) != (rank, rank):
        return f"{shapes} do not have the rank {rank} of its config"
    scale = given.weight * given.adapter.scaling.scale_of(module)
    return _Term(given.place.of(given.adapter.file), a, b, scale, pair.is_embedding)


def _misfit(term: _Term, others: Sequence[_Term]) -> str:
    """Say how a term differs from those it is to be added to; empty if it fits."""
    for other in others[:1]:
        if term.shape != other.shape:
            return f"updates {list(term.shape)}, {other.where} {list(other.shape)}: other bases?"
        if term.is_embedding != other.is_embedding:
            return f"only here or in {other.where} it is an embedding"
    return ""


def _most(
    terms: Mapping[str, tuple[_Term, ...]], dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Give the tensors that may be written, at their largest."""
    most: dict[str, tuple[str, tuple[int, ...]]] = {}
    for module, several in terms.items():
        rank = sum(term.a.shape[0] for term in several)
        for name in factor_names(module, is_embedding=several[0].is_embedding):
            most[name] = (dtype, (max(several[0].shape), rank))
    return most


def _add(
    file: TensorFile,
    module: str,
    terms: Sequence[_Term],
    *,
    how: How,
    rank: int | None,
    dtype: str,
) -> Part:
    """Write one module's sum."""
    bs = [term.scale * _read(term.b, term) for term in terms]
    a_s = [_read(term.a, term) for term in terms]
    if how == "cat":
        b, a = torch.cat(bs, dim=1), torch.cat(a_s)
        # ‖BA‖² = tr(BᵀB AAᵀ)
        change = held = float(((b.T @ b) * (a @ a.T)).sum())
    else:
        found = decompose_sum(bs, a_s)
        b, a = found.factors(found.rank if rank is None else min(rank, found.rank), 1.0)
        change, held = (float(s.square().sum()) for s in (found.s, found.s[: len(a)]))
    if len(a):
        names = factor_names(module, is_embedding=terms[0].is_embedding)
        for name, factor in zip(names, (b, a), strict=True):
            file.add(name, rounded(factor, dtype, module))
    return Part(f"{module}.weight", "low rank", len(a), change, held)


def _read(stored: Stored, term: _Term) -> Tensor:
    values = read_range(stored, 0, stored.numel).double().reshape(stored.shape)
    if not values.isfinite().all():
        what = "holds nan or inf"
        raise NonFiniteError(
            Problem(f"{term.where}: {stored.name}", what, "leave that adapter out")
        )
    return values


def _config(parts: Sequence[Part], given: Sequence[_Given]) -> dict[str, Any]:
    ranks = {part.name.removesuffix(".weight"): part.rank for part in parts if part.rank}
    if not ranks:
        what = "the sum is zero: the adapters cancel each other out"
        raise InputError(Problem("--weights", what))
    configs = [one.adapter.config for one in given]
    first = configs[0]
    targets = {field: first.get(field) for field in _TARGETS if first.get(field)}
    if any(_targets_of(config) != _targets_of(first) for config in configs[1:]):
        targets = {"target_modules": sorted(ranks)}
    kept = ("base_model_name_or_path", "revision", "fan_in_fan_out", "task_type")
    return {
        **low_rank_fields(ranks),
        **{field: first[field] for field in kept if field in first},
        **targets,
    }


def _targets_of(config: Mapping[str, Any]) -> list[Any]:
    found = [config.get(field) or None for field in _TARGETS]
    return [sorted(map(str, one)) if isinstance(one, list) else one for one in found]
