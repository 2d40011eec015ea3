"""Which tensors of the models can be held against the base's, and what else differs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergepipe.checkpoint import Checkpoint, Stored, embedding_name, layer_of
from mergepipe.errors import Problems
from mergepipe.method import Role
from mergepipe.plan import Input, Step
from mergepipe.plan.align import Alignment, align, is_buffer, role_of, shown_names
from mergepipe.tokenizer import check_tokenizers

__all__ = ["Difference", "Matched", "kind_of", "layer_label", "match"]

_NORM = re.compile(r"(^|[._])(\w*norm\w*|ln_?\w*)(\.|$)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Difference:
    """Something besides values in which a model is not like the base."""

    model: str
    code: str  # missing, unexpected, shape, dtype, vocabulary, words, names, not-finite
    text: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Matched:
    """Tensors to be compared, as steps that read the base and every model that has them."""

    steps: tuple[Step, ...]
    differences: tuple[Difference, ...]


def match(base: Checkpoint, models: Sequence[Checkpoint]) -> Matched:
    """Pair tensors by name, as a merge would.

    Raises
    ------
    InputError
        if a model is of another architecture.

    """
    problems = Problems()
    found = [align(base, model, problems) for model in models]
    problems.raise_any()
    aligned = [one for one in found if one is not None]
    tied = align(base, base, problems)
    assert tied is not None, "a model has its own architecture"
    names = [
        name
        for name, stored in base.tensors.items()
        if name not in tied.copies and stored.is_float and not is_buffer(name)
    ]
    steps = [_step(base, name, aligned) for name in names]
    differences = [one for model in aligned for one in _differences(base, names, model)]
    return Matched(tuple(step for step in steps if step.inputs), tuple(differences))


def _step(base: Checkpoint, name: str, models: Sequence[Alignment]) -> Step:
    stored = base.tensors[name]
    inputs = tuple(
        Input(model.checkpoint.label, model.checkpoint, other)
        for model in models
        if (other := _alike(stored, model, name))
    )
    return Step(
        name=name,
        dtype=stored.dtype,
        shape=stored.shape,
        method=None,
        base=Input(base.label, base, name),
        inputs=inputs,
        each=(),
        shared=None,
        rule=None,
        depth=0.0,
        reason="compared",
        role=role_of(name, stored.shape),
    )


def _alike(stored: Stored, model: Alignment, name: str) -> str | None:
    """Give a model's name of a tensor if its elements can be held against the base's."""
    other = model.names.get(name)
    theirs = model.checkpoint.tensors.get(other or "")
    return other if theirs and theirs.shape == stored.shape and theirs.is_float else None


def _differences(base: Checkpoint, names: Sequence[str], model: Alignment) -> Iterator[Difference]:
    label, tensors = model.checkpoint.label, model.checkpoint.tensors
    for note in model.notes:
        yield Difference(label, "names", note)
    missing = [name for name in names if name not in model.names]
    if missing:
        text = f"{len(missing)} tensors of {base.label} are missing: {shown_names(missing)}"
        yield Difference(label, "missing", text, tuple(missing))
    used = {*model.names.values(), *model.copies}
    extra = [name for name in tensors if name not in used and not is_buffer(name)]
    if extra:
        text = f"{len(extra)} tensors that {base.label} lacks: {shown_names(extra)}"
        yield Difference(label, "unexpected", text, tuple(extra))
    both = [
        (base.tensors[name], tensors[model.names[name]]) for name in names if name in model.names
    ]
    shapes = {
        theirs.name: f"{theirs.name} {list(theirs.shape)} (not {list(ours.shape)})"
        for ours, theirs in both
        if ours.shape != theirs.shape
    }
    if shapes:
        text = f"{len(shapes)} tensors have another shape: {shown_names(list(shapes.values()))}"
        yield Difference(label, "shape", text, tuple(shapes))
    yield from _dtypes(label, base.label, both)
    yield from _vocabulary(base, model.checkpoint)


def _dtypes(label: str, base: str, both: Sequence[tuple[Stored, Stored]]) -> Iterator[Difference]:
    kinds: dict[tuple[str, str], list[str]] = {}
    for ours, theirs in both:
        if ours.dtype != theirs.dtype:
            kinds.setdefault((theirs.dtype, ours.dtype), []).append(theirs.name)
    for (theirs_in, ours_in), names in kinds.items():
        text = f"{len(names)} tensors are stored as {theirs_in}, those of {base} as {ours_in}"
        yield Difference(label, "dtype", text, tuple(names))


def _vocabulary(base: Checkpoint, model: Checkpoint) -> Iterator[Difference]:
    """Compare the rows of the embeddings, and which words they stand for."""
    (ours, rows), (theirs, other_rows) = _rows(base), _rows(model)
    if rows != other_rows:
        text = f"{other_rows} rows of words ({theirs}), {base.label} has {rows} ({ours})"
        yield Difference(model.label, "vocabulary", text)
    problems = Problems()
    check_tokenizers(base, (model,), max(rows, other_rows), problems)
    for problem in problems.found:
        yield Difference(model.label, "words", f"{problem.what} ({problem.fix})")
    for warning in problems.warnings:
        yield Difference(model.label, "words", warning.partition(": ")[2])


def _rows(model: Checkpoint) -> tuple[str, int]:
    name = embedding_name(model.tensors)
    return ("no embedding", 0) if name is None else (name, model.tensors[name].shape[0])


def kind_of(name: str, role: Role) -> str:
    """Name what tensors of all layers have in common: `q_proj`, `mlp.up_proj`, `norms`."""
    if role != "other":
        return role
    layer = layer_of(name)
    name = name.removeprefix(f"{layer[0]}.{layer[1]}." if layer else "")
    name = name.removesuffix(".weight").removeprefix("self_attn.").removeprefix("attn.")
    return "norms" if _NORM.search(name) else _NUMBER.sub("*", name)


def layer_label(name: str, stacks: Sequence[str]) -> str:
    """Name the layer of a tensor; where there are several stacks of layers, with its stack."""
    layer = layer_of(name)
    if layer is None:
        return "outside"
    return str(layer[1]) if len(stacks) == 1 else f"{layer[0]}.{layer[1]}"
