"""What looking at models found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import combinations
from operator import add
from typing import TypeAlias, TypeVar

from mergepipe.checkpoint import Checkpoint, layer_of
from mergepipe.errors import InputError, Problem
from mergepipe.inspect.inputs import Inputs
from mergepipe.inspect.matching import Difference, kind_of, layer_label, match
from mergepipe.inspect.measuring import Progress, measure
from mergepipe.inspect.sums import Sums
from mergepipe.plan import Step
from mergepipe.plan.align import shown_names

__all__ = ["Report", "Reporter", "TensorSums", "inspect"]

Key = TypeVar("Key")
Reporter: TypeAlias = Callable[[int], Progress]  # is told how many bytes there are to read


@dataclass(frozen=True, slots=True)
class TensorSums:
    """One tensor of the base, and what the models that have it made of it."""

    step: Step
    kind: str
    layer: str
    sums: Sums
    not_finite: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A base and models, compared."""

    base: Checkpoint
    models: tuple[Checkpoint, ...]
    tensors: tuple[TensorSums, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The models in order."""
        return tuple(model.label for model in self.models)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """All pairs of models."""
        return tuple(combinations(range(len(self.models)), 2))

    @cached_property
    def total(self) -> Sums:
        """Sums over all tensors."""
        return reduce(add, (one.sums for one in self.tensors))

    @cached_property
    def kinds(self) -> Mapping[str, Sums]:
        """Sums by kind of tensor."""
        return _grouped((one.kind, one.sums) for one in self.tensors)

    @cached_property
    def layers(self) -> Mapping[str, Sums]:
        """Sums by layer."""
        return _grouped((one.layer, one.sums) for one in self.tensors)

    @cached_property
    def cells(self) -> Mapping[tuple[str, str], Sums]:
        """Sums by layer and kind."""
        return _grouped(((one.layer, one.kind), one.sums) for one in self.tensors)


def _grouped(parts: Iterable[tuple[Key, Sums]]) -> dict[Key, Sums]:
    found: dict[Key, Sums] = {}
    for key, sums in parts:
        found[key] = found[key] + sums if key in found else sums
    return found


def inspect(
    inputs: Inputs, *, threads: int | None = None, reporter: Reporter | None = None
) -> Report:
    """Hold models against their base, and against each other. All tensors are read once.

    Raises
    ------
    InputError
        if a model is of another architecture, or shares no tensor with the base.
    EnvironmentFault
        if a file cannot be read.

    """
    base, models = inputs.base, inputs.models
    matched = match(base, models)
    labels = [model.label for model in models]
    if not matched.steps:
        what = f"no tensor has the same name and shape as one of {base.label}"
        raise InputError(Problem(", ".join(labels), what, "compare models of one architecture"))
    progress = reporter(sum(step.bytes_read for step in matched.steps)) if reporter else None
    measured = measure(matched.steps, labels, threads=threads, progress=progress)
    stacks = list(dict.fromkeys(x[0] for step in matched.steps if (x := layer_of(step.name))))
    tensors = tuple(
        TensorSums(
            step=step,
            kind=kind_of(step.name, step.role),
            layer=layer_label(step.name, stacks),
            sums=one.sums,
            not_finite=tuple(labels[i] for i in one.not_finite),
        )
        for step, one in zip(matched.steps, measured, strict=True)
    )
    differences = (*matched.differences, *_not_finite(labels, tensors))
    return Report(base, models, tensors, differences, inputs.warnings)


def _not_finite(labels: Sequence[str], tensors: Sequence[TensorSums]) -> Iterator[Difference]:
    for label in labels:
        names = [one.step.name for one in tensors if label in one.not_finite]
        if names:
            text = (
                f"{len(names)} tensors were left out, as they or the base's hold NaN or infinity: "
                f"{shown_names(names)}"
            )
            yield Difference(label, "not-finite", text, tuple(names))
