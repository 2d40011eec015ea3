"""A fine-tune and its base -> a LoRA adapter, one matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mergepipe.checkpoint import (
    DTYPES,
    Checkpoint,
    ModelSource,
    family,
    open_checkpoint,
    read_range,
    read_values,
)
from mergepipe.errors import InputError, NonFiniteError, Problem, Problems
from mergepipe.execute import as_device
from mergepipe.lora.choosing import Choice, choose, module_of, modules_above
from mergepipe.lora.factors import Spectrum, decompose, least_rank
from mergepipe.lora.report import Part, Result, rows_of
from mergepipe.lora.writing import (
    WEIGHTS,
    TensorFile,
    dtype_named,
    factor_names,
    low_rank_fields,
    rounded,
    short_names,
    stored_name,
    write_config,
)
from mergepipe.write import check_target, new_folder

__all__ = ["Advance", "Options", "extract"]

Advance: TypeAlias = Callable[[int, int, str], None]  # elements done, of how many, the next tensor
_RANK = 32
_TIED_HEAD = "lm_head.weight"
_BLOCK = 1 << 22
_FACTOR_DTYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class Options:
    """What is extracted, and how it is stored.

    Either all updates have `rank`, or each the least rank that keeps the share `energy` of its
    squared singular values, `max_rank` at most. `alpha` None makes every scale 1, `dtype` None
    stores factors as the fine-tune stores the matrix.
    """

    rank: int | None = None
    energy: float | None = None
    max_rank: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    save: tuple[str, ...] = ()
    embeddings: bool = False
    alpha: float | None = None
    distribute_scale: bool = True
    dtype: str | None = None
    device: str | None = None

    @property
    def most(self) -> float:
        """The largest rank that an update may have."""
        if self.energy is not None:
            return self.max_rank or math.inf
        return self.rank or _RANK

    def rank_of(self, found: Spectrum) -> int:
        """Give the rank of an update."""
        wanted = found.rank if self.energy is None else least_rank(found.s, self.energy)
        return int(min(wanted, found.rank, self.most))

    def scale_of(self, rank: int) -> float:
        """Give the scale by which PEFT multiplies an update of that rank."""
        return 1.0 if self.alpha is None else self.alpha / rank

    def check(self) -> None:
        """Refuse what cannot be, or contradicts itself."""
        problems = Problems()
        if self.rank is not None and self.energy is not None:
            problems.add("--energy", "--rank is given too", "give one of them")
        if self.max_rank is not None and self.energy is None:
            problems.add("--max-rank", "limits --energy, which is not given", "give --rank instead")
        if self.energy is not None and not 0 < self.energy <= 1:
            problems.add("--energy", f"is {self.energy}: a share above 0, at most 1, is needed")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            problems.add("--alpha", f"is {self.alpha}: a number above 0 is needed")
        problems.raise_any()
        if self.dtype is not None:
            dtype_named(self.dtype)


def extract(
    model: ModelSource,
    base: ModelSource,
    out: Path,
    options: Options,
    *,
    overwrite: bool = False,
    advance: Advance = lambda _done, _total, _name: None,
) -> Result:
    """Write the adapter that, applied to `base`, comes nearest to `model`.

    Raises
    ------
    InputError
        if a model or an option is wrong, or no matrix that would be taken differs.
    EnvironmentFault
        if a file cannot be read or written.

    """
    options.check()
    check_target(out, overwrite=overwrite)
    problems = Problems()
    fine_tune, original = (open_checkpoint(one, problems) for one in (model, base))
    problems.raise_any()
    assert fine_tune is not None
    assert original is not None
    choice = _chosen(fine_tune, original, options, problems)
    problems.raise_any()
    work = _Work(fine_tune, original, choice, options, as_device(options.device or "cpu"), advance)
    with new_folder(out, overwrite=overwrite) as folder:
        parts = tuple(work.parts(folder / WEIGHTS))
        write_config(folder, work.config(parts))
    _warn(parts, choice, problems)
    return Result(out, parts, tuple(problems.warnings))


def _chosen(model: Checkpoint, base: Checkpoint, options: Options, problems: Problems) -> Choice:
    choice = choose(
        model,
        base,
        include=options.include,
        exclude=options.exclude,
        save=options.save,
        embeddings=options.embeddings,
        problems=problems,
    )
    if not choice.low_rank:
        problems.add(model.label, "no matrix is left to take an update of", "name fewer exceptions")
    return choice


@dataclass(frozen=True, slots=True)
class _Work:
    model: Checkpoint
    base: Checkpoint
    choice: Choice
    options: Options
    device: torch.device
    advance: Advance

    def parts(self, path: Path) -> Iterator[Part]:
        """Write the adapter's tensors, and measure all others."""
        done, jobs = 0, self._jobs()
        total = sum(self.base.tensors[name].numel for name, _ in jobs)
        with TensorFile(path, self._most()) as file:
            for name, make in jobs:
                self.advance(done, total, name)
                yield make(name, file)
                done += self.base.tensors[name].numel
        self.advance(total, total, "")

    def _jobs(self) -> list[tuple[str, Callable[[str, TensorFile], Part]]]:
        """Give what is done, in order; what is written has its widest dtypes first."""
        written = [(name, self._low_rank) for name in self.choice.low_rank]
        written += [(name, self._whole) for name in self.choice.whole]
        written.sort(key=lambda job: -DTYPES[self._dtype(job[0])].itemsize)
        return written + [(name, self._left_out) for name in self.choice.compared]

    def _dtype(self, name: str) -> str:
        """Give the dtype in which a tensor, or its factors, are written."""
        stored = self.model.tensors[name].dtype
        if name in self.choice.whole:
            return stored
        if self.options.dtype is not None:
            return dtype_named(self.options.dtype)
        return stored if stored in _FACTOR_DTYPES else "F32"

    def _whole_names(self, name: str) -> tuple[str, ...]:
        """Give the names under which a tensor is stored whole: PEFT also looks for a tied head."""
        is_head = name == self.choice.embedding and self.choice.ties_head
        return (stored_name(name), *((stored_name(_TIED_HEAD),) if is_head else ()))

    def _names(self, name: str) -> tuple[str, str]:
        return factor_names(module_of(name), is_embedding=name == self.choice.embedding)

    def _most(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Give the tensors that may be written, at their largest."""
        most: dict[str, tuple[str, tuple[int, ...]]] = {
            key: (self._dtype(name), self.model.tensors[name].shape)
            for name in self.choice.whole
            for key in self._whole_names(name)
        }
        for name in self.choice.low_rank:
            shape = self.base.tensors[name].shape
            rank = int(min(*shape, self.options.most))
            for factor in self._names(name):
                most[factor] = (self._dtype(name), (max(shape), rank))
        return most

    def _low_rank(self, name: str, file: TensorFile) -> Part:
        shape = self.base.tensors[name].shape
        delta = self._delta(name, 0, math.prod(shape)).to(self.device).reshape(shape)
        delta = delta.T if self.choice.is_transposed(name) else delta
        change = float(delta.square().sum())
        found = decompose(delta)
        rank = self.options.rank_of(found)
        if rank == 0:
            return Part(name, "low rank", 0, change, change)
        scale = self.options.scale_of(rank)
        factors = found.factors(rank, scale, distribute=self.options.distribute_scale)
        b, a = (rounded(factor, self._dtype(name), name) for factor in factors)
        for key, factor in zip(self._names(name), (b, a), strict=True):
            file.add(key, factor)
        missing = delta - scale * (b.double() @ a.double())
        return Part(name, "low rank", rank, change, change - float(missing.square().sum()))

    def _whole(self, name: str, file: TensorFile) -> Part:
        stored = self.model.tensors[name]
        for key in self._whole_names(name):
            file.add(key, read_range(stored, 0, stored.numel).reshape(stored.shape))
        change = self._change(name)
        return Part(name, "whole", 0, change, change)

    def _left_out(self, name: str, _file: TensorFile) -> Part:
        return Part(name, "left out", 0, self._change(name), 0.0)

    def _change(self, name: str) -> float:
        """Give the squared norm of a tensor's change, read in blocks."""
        count = self.base.tensors[name].numel
        blocks = ((at, min(at + _BLOCK, count)) for at in range(0, count, _BLOCK))
        return sum(float(self._delta(name, *block).square().sum()) for block in blocks)

    def _delta(self, name: str, start: int, stop: int) -> Tensor:
        """Give a range of the change: 1-D, fp64."""
        ours, theirs = (_read(one, name, start, stop) for one in (self.model, self.base))
        return ours - theirs

    def config(self, parts: tuple[Part, ...]) -> dict[str, Any]:
        """Give the fields of the adapter's config."""
        ranks = {module_of(one.name): one.rank for one in parts if one.rank}
        if not ranks:
            what = "none of the matrices that would be taken differs from the base's"
            raise InputError(Problem(self.model.label, what, "are these the models you mean?"))
        whole = dict.fromkeys(map(module_of, self.choice.whole))
        modules = modules_above(self.base.tensors)
        is_tied = self.choice.ties_head and self.choice.embedding in self.choice.whole
        is_causal = "ForCausalLM" in family(self.base.config)[1]
        return {
            **low_rank_fields(ranks, self.options.alpha),
            "base_model_name_or_path": self.base.source.hub or str(self.base.source.path),
            "revision": self.base.source.revision,
            "fan_in_fan_out": self.choice.fan_in_fan_out,
            "modules_to_save": short_names(whole, modules.keys() - whole.keys()) or None,
            "target_modules": short_names(ranks, modules.keys() - ranks.keys()),
            "task_type": "CAUSAL_LM" if is_causal else None,
            **({"ensure_weight_tying": True} if is_tied else {}),
        }


def _read(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Tensor:
    values = read_values(checkpoint, name, start, stop).double()
    if not values.isfinite().all():
        file = checkpoint.tensors[name].file
        where = f"{checkpoint.label} ({checkpoint.folder.name}/{file.name}): {name}"
        raise NonFiniteError(Problem(where, "holds nan or inf", "the model is broken; use another"))
    return values


def _warn(parts: tuple[Part, ...], choice: Choice, problems: Problems) -> None:
    """Say what changed and is not in the adapter, and what would put it there."""
    for row in rows_of(parts):
        if row.how == "left out" and row.change > 0:
            what = f"changed but is not in the adapter: {row.change:.2%} of all change"
            one = "1 tensor" if row.count == 1 else f"{row.count} tensors"
            problems.warn(row.kind, f"{what}, {one} (--save-module {row.kind} stores it whole)")
    if choice.ties_head and choice.embedding in choice.low_rank:
        what = "tied to the output head: PEFT applies its update to both only once it is merged"
        problems.warn(choice.embedding, what)
