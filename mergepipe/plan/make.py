"""Decide what becomes of every tensor of every input. Only names, dtypes and shapes are read."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mergepipe.checkpoint import (
    DTYPES,
    Checkpoint,
    Stored,
    layer_of,
    with_layers,
    with_vocabulary,
)
from mergepipe.errors import Problems, printable
from mergepipe.method import Method, load_method
from mergepipe.plan.account import account, check_words
from mergepipe.plan.align import Alignment, align, is_buffer, place_of, role_of, shown_names
from mergepipe.plan.compat import Compat
from mergepipe.plan.layout import Layout, arrange
from mergepipe.plan.slices import Wanted, layer_sources, wanted
from mergepipe.plan.steps import Dropped, Input, Step
from mergepipe.plan.values import Values
from mergepipe.recipe import MergeSpec, NanPolicy, Place, Rule

__all__ = ["Plan", "make_plan"]

_OUTPUT_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Plan:
    """What one merge will do. Nothing has been read but headers."""

    name: str
    spec: MergeSpec
    seed: int
    donor: Checkpoint
    steps: tuple[Step, ...]
    dropped: tuple[Dropped, ...]
    layout: Layout
    nan_policy: NanPolicy = "refuse"
    # Where layers were put together: the layer of the donor that each of the result is like.
    layers: tuple[int, ...] | None = None
    rows: int | None = None  # of the vocabulary, where it was cut

    @cached_property
    def bytes_read(self) -> int:
        """Bytes read, at most."""
        return sum(step.bytes_read for step in self.steps)

    @property
    def bytes_written(self) -> int:
        """Bytes of all output shards, headers included."""
        return sum(shard.size for shard in self.layout.shards)

    def peak_bytes(self, threads: int) -> int:
        """Memory that the merge needs beside the interpreter and libraries, about."""
        largest = sorted((step.working_bytes for step in self.steps), reverse=True)
        return sum(largest[:threads])

    def as_checkpoint(self, folder: Path) -> Checkpoint:
        """Give the checkpoint this plan will have written to `folder`, as later stages see it."""
        tensors = {}
        for step in self.steps:
            shard, start = self.layout.place[step.name]
            file = folder / self.layout.shards[shard].file
            size = _nbytes(step)
            tensors[step.name] = Stored(
                step.name, step.dtype, step.shape, file, start, start + size
            )
        config = self.donor.config
        if self.layers is not None:
            config = with_layers(config, self.layers)
        if self.rows is not None:
            config = with_vocabulary(config, self.rows)
        return Checkpoint(
            label=self.name,
            folder=self.donor.folder,
            config=config,
            tensors=tensors,
            low_rank={},
            aliases={},
            source=self.donor.source,
            tokenizer=self.donor.tokenizer,
        )


def _nbytes(step: Step) -> int:
    return DTYPES[step.dtype].itemsize * step.numel


def make_plan(
    name: str,
    spec: MergeSpec,
    checkpoints: Mapping[str, Checkpoint],
    problems: Problems,
    *,
    seed: int = 0,
    dtype: str | None = None,
    like: Checkpoint | None = None,
    tokenizer: Checkpoint | None = None,
    max_shard_bytes: int = 5_000_000_000,
    nan_policy: NanPolicy = "refuse",
    compat: Collection[str] | None = None,
    hint: str = "",
    aligned: bool = False,
) -> Plan | None:
    """Plan one merge, or add every reason why not to `problems`.

    `checkpoints` holds the models by label; `dtype` is that of all float outputs (default: as in
    `like`, tensor by tensor, which defaults to the donor), and `tokenizer` the model whose
    tokenizer the result shall have (default: the donor). With `compat`, tensors of other shapes
    are merged by the rules of mergekit 0.1.4, whose methods on task vectors it names; `hint` is
    said where that would help. Where the models are `aligned`, their ids mean the same words.
    """
    planner = _Planner(spec, checkpoints, problems, dtype)
    planner.compat = None if compat is None else Compat(planner.donor, compat, problems)
    planner.hint = hint
    planner.like = like or planner.donor
    if not planner.usable:
        return None
    steps = planner.steps()
    if not aligned:
        check_words(tokenizer or planner.donor, steps, problems)
    dropped = account(planner.donor, planner.models, steps, problems)
    layout = arrange([(s.name, s.dtype, s.shape) for s in steps], max_shard_bytes)
    layers = layer_sources(spec)
    rows = planner.compat.rows if planner.compat else None
    return Plan(name, spec, seed, planner.donor, steps, dropped, layout, nan_policy, layers, rows)


class _Planner:
    """Decides tensor by tensor; holds what every decision needs."""

    def __init__(
        self,
        spec: MergeSpec,
        checkpoints: Mapping[str, Checkpoint],
        problems: Problems,
        dtype: str | None,
    ) -> None:
        self.spec, self.problems = spec, problems
        self.dtype = _OUTPUT_DTYPES[dtype] if dtype else None
        self.donor = self.like = checkpoints[spec.donor]
        taken = [rule.take for rule in spec.rules if rule.take is not None]
        bases = [part.base for part in spec.slices if part.base is not None]
        labels = dict.fromkeys((spec.donor, *spec.models, *bases, *taken))
        self.models: dict[str, Alignment] = {}
        for label in labels:
            alignment = align(self.donor, checkpoints[label], problems, same_depth=not spec.slices)
            if alignment is not None:
                self.models[label] = alignment
                for note in alignment.notes:
                    problems.warn(label, note)
        self.compat: Compat | None = None
        self.hint = ""
        self.usable = len(self.models) == len(labels)
        self.globs = [
            re.compile("|".join(f"(?:{fnmatch.translate(glob)})" for glob in rule.globs))
            for rule in spec.rules
        ]
        self.fitted = [0] * len(spec.rules)
        self.shadowed = [0] * len(spec.rules)
        self.values = Values(spec, self.donor, problems)
        self.missing: dict[str, list[str]] = {label: [] for label in self.models}
        self.mismatched: dict[str, list[str]] = {label: [] for label in self.models}

    def steps(self) -> tuple[Step, ...]:
        """Decide every output tensor, in the donor's order; tensors only taken come last."""
        all_wanted = wanted(self.spec, self.models, self.values, self.problems)
        planned = [self._step(one) for one in all_wanted]
        planned += self._taken_only()
        self._report()
        return tuple(planned)

    def _fit(self, name: str) -> int | None:
        first = None
        for i, glob in enumerate(self.globs):
            if glob.match(name):
                if first is None:
                    first = i
                    self.fitted[i] += 1
                else:
                    self.shadowed[i] += 1
        return first

    def _step(self, one: Wanted) -> Step:
        name, stored = one.name, one.stored
        fit = self._fit(name)
        rule = None if fit is None else self.spec.rules[fit]
        if rule is not None and rule.take is not None:
            return self._take(one, rule, fit)
        if is_buffer(name):
            return self._keep(one, "buffer, not a parameter", fit)
        if not stored.is_float:
            self._refuse_floats(one)
            return self._keep(one, f"{stored.dtype} buffer", fit)
        method = load_method(rule.method if rule and rule.method else self.spec.method)
        label = self._base_label(one)
        uses_base = method.uses_base(named=label is not None)
        if self.compat is not None:
            one = self._cut(self.compat, one, method, label)
        inputs = self._inputs(one, method.name)
        if len(inputs) < method.models[0]:
            return self._keep(one, "only the base has it", fit)
        names = {found.label: found.name for found in inputs}
        each, shared = self.values.at(method, fit, one.part, names, one.place)
        return Step(
            name=name,
            dtype=self._output_dtype(stored),
            shape=one.stored.shape,
            method=method.name,
            base=self._input(one, label or self.donor.label) if uses_base else None,
            inputs=inputs,
            each=each,
            shared=shared,
            rule=fit,
            depth=one.place.depth,
            reason=f"where[{fit}]" if fit is not None else "merge",
            role=role_of(name, one.stored.shape),
            then=self.values.then(fit, one.place),
        )

    def _base_label(self, one: Wanted) -> str | None:
        return self.spec.base if one.part is None else one.part.base

    def _input(self, one: Wanted, label: str) -> Input:
        return Input(label, self.models[label].checkpoint, one.names[label])

    def _cut(
        self, compat: Compat, one: Wanted, method: Method[Any, Any], base: str | None
    ) -> Wanted:
        labels = self.spec.models if one.part is None else one.part.models
        used = [base] if base is not None and method.uses_base(named=True) else []
        found = {x: self._input(one, x).stored for x in (*used, *labels) if x in one.names}
        return compat.cut(one, method.name, found, base if used else None)

    def _inputs(self, one: Wanted, method: str) -> tuple[Input, ...]:
        """Find the models that have the tensor; note those that should and do not."""
        found = []
        for label in self.spec.models if one.part is None else one.part.models:
            model = self.models[label]
            other = one.names.get(label)
            if other is None:
                if not (model.heads_differ and layer_of(one.name) is None):
                    self.missing[label].append(one.name)
                continue
            theirs = model.checkpoint.tensors[other]
            if theirs.shape != one.stored.shape and not (
                self.compat and self.compat.takes(one, theirs)
            ):
                if self.compat and self.compat.skips(one, method, label, theirs):
                    continue
                self.mismatched[label].append(
                    f"{printable(other, 200)} {list(theirs.shape)} (not {list(one.stored.shape)})"
                )
            elif not theirs.is_float:
                self.mismatched[label].append(
                    f"{printable(other, 200)} {theirs.dtype} (not {one.stored.dtype})"
                )
            else:
                found.append(Input(label, model.checkpoint, other))
        return tuple(found)

    def _refuse_floats(self, one: Wanted) -> None:
        """Note models in which a tensor has values to merge though the donor has integers."""
        for label in self.spec.models if one.part is None else one.part.models:
            other = one.names.get(label)
            theirs = one.stored if other is None else self.models[label].checkpoint.tensors[other]
            if theirs.is_float:
                self.mismatched[label].append(
                    f"{printable(one.name, 200)} {theirs.dtype} (not {one.stored.dtype})"
                )

    def _take(self, one: Wanted, rule: Rule, fit: int | None) -> Step:
        assert rule.take is not None, "a rule that takes"
        if rule.take not in one.names:
            self.problems.add(rule.place, f"{rule.take} has no tensor {printable(one.name, 200)}")
            return self._keep(one, "", fit)
        reason = f"taken from {rule.take}"
        return self._copy(one.place, rule.take, one.names[rule.take], reason, fit)

    def _keep(self, one: Wanted, reason: str, fit: int | None) -> Step:
        """Copy the donor's tensor, or that of the first model of a slice without the donor."""
        inside = [x for x in one.names if one.part is None or x in one.part.layers]
        label = self.donor.label if self.donor.label in inside or not inside else inside[0]
        return self._copy(one.place, label, one.names[label], reason, fit)

    def _copy(self, place: Place, label: str, other: str, reason: str, fit: int | None) -> Step:
        source = Input(label, self.models[label].checkpoint, other)
        stored = source.stored
        return Step(
            name=place.name,
            dtype=self._output_dtype(stored),
            shape=stored.shape,
            method=None,
            base=None,
            inputs=(source,),
            each=(),
            shared=None,
            rule=fit,
            depth=place.depth,
            reason=reason,
        )

    def _taken_only(self) -> list[Step]:
        """Bring in tensors that the donor lacks and a `take` rule names (another model's head)."""
        planned: dict[str, Step] = {}
        for i, rule in enumerate(self.spec.rules):
            if rule.take is None:
                continue
            model = self.models[rule.take]
            known = {*self.donor.tensors, *model.names.values(), *model.copies}
            for name in model.checkpoint.tensors:
                new = name not in known and name not in planned
                if new and self.globs[i].match(name):
                    self.fitted[i] += 1
                    place, reason = self.values.place(name), f"taken from {rule.take}"
                    planned[name] = self._copy(place, rule.take, name, reason, i)
        return list(planned.values())

    def _output_dtype(self, stored: Stored) -> str:
        if not stored.is_float:
            return stored.dtype
        native = self.like.tensors.get(stored.name, stored).dtype
        return self.dtype or ("BF16" if native.startswith("F8") else native)

    def _report(self) -> None:
        """Turn what the tensors lacked into one problem a model and one a rule."""
        for label, names in self.missing.items():
            if names:
                extra = self._unknown_names(label)
                self.problems.add(
                    place_of(self.models[label].checkpoint),
                    f"{len(names)} tensors are missing that {self.donor.label} has: "
                    f"{shown_names(names)}"
                    + (f"; it has unexpected ones: {shown_names(extra)}" if extra else ""),
                    f'to keep the base\'s, add a rule: {{tensors: "{printable(names[0], 200)}", '
                    f"take: {self.donor.label}}}",
                )
        for label, shapes in self.mismatched.items():
            if shapes:
                self.problems.add(
                    place_of(self.models[label].checkpoint),
                    f"{len(shapes)} tensors have another shape or dtype than in "
                    f"{self.donor.label}: {shown_names(shapes)}",
                    "merge models of one size and vocabulary, or `take` these from one model"
                    + self.hint,
                )
        for i, rule in enumerate(self.spec.rules):
            if not self.fitted[i]:
                globs = ", ".join(rule.globs)
                why = "earlier rules fit all of its tensors" if self.shadowed[i] else "no tensor"
                self.problems.add(rule.place, f"'{globs}' fits nothing: {why}")

    def _unknown_names(self, label: str) -> list[str]:
        model = self.models[label]
        used = set(model.names.values())
        return [name for name in model.checkpoint.tensors if name not in used]
