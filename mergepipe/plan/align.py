"""Which tensor of one model is which tensor of another, by name alone.

Models of one family may differ in their heads (a classifier beside a language model), in the
prefixes of their parts (`bert.encoder...` beside `encoder...`, `visual...` beside
`model.visual...`), in the spelling of a few old names, in buffers, and in whether the output head
is stored or tied to the input embedding. Anything else that differs is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergepipe.checkpoint import (
    Checkpoint,
    Stored,
    embedding_name,
    family,
    layer_of,
    read_range,
)
from mergepipe.errors import Problems, printable
from mergepipe.method import Role

__all__ = [
    "Alignment",
    "align",
    "head_name",
    "is_buffer",
    "place_of",
    "role_of",
    "shown_names",
]

# What a module keeps beside its parameters; derived from the configuration, never merged.
_BUFFER = re.compile(
    r"(^|\.)((original_)?inv_freq|position_ids|token_type_ids|masked_bias|attn\.bias"
    r"|num_batches_tracked|rotary_emb\.(cos|sin)_cached)$"
)
# Modules that look rows up: words, positions, kinds of segments.
_TABLE = re.compile(
    r"(^|\.)(w[tp]e|shared|(\w+_)?embed(ding|s|dings|_in|_tokens|_positions)?)(\.weight)?$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)(\.weight)?$")
_HEAD_SUFFIX = re.compile(r"(For[A-Z]|LMHead|DoubleHeads|Model$|PreTrained)")
# (old, new) endings of one tensor's name; loaders know both.
_SPELLINGS = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)
_MATRIX = 2
_SAMPLE = 4096  # elements
_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Alignment:
    """How one model's tensors are found by the donor's names."""

    checkpoint: Checkpoint
    names: Mapping[str, str]  # donor's name -> this model's name
    copies: Mapping[str, str]  # tensors that repeat another one (tied weights) -> that one
    heads_differ: bool
    notes: tuple[str, ...]


def is_buffer(name: str) -> bool:
    """Tell a known non-parameter by its name."""
    return _BUFFER.search(name) is not None


def shown_names(names: Collection[str], most: int = 3) -> str:
    """`a, b, c and 4 more`, escaped."""
    shown = ", ".join(printable(name, 200) for name in list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def head_name(names: Iterable[str]) -> str | None:
    """Give the output head among tensor names: `lm_head.weight`, on its own or inside a part."""
    return next((name for name in names if f".{name}".endswith(".lm_head.weight")), None)


def role_of(name: str, shape: Sequence[int]) -> Role:
    """Tell tables of rows and output heads from other tensors, by their names."""
    if len(shape) != _MATRIX:
        return "other"
    if _HEAD.search(name):
        return "head"
    return "embedding" if _TABLE.search(name) else "other"


def align(
    donor: Checkpoint, model: Checkpoint, problems: Problems, *, same_depth: bool = True
) -> Alignment | None:
    """Find the model's tensors by the donor's names; None if it is another architecture.

    With `same_depth`, models of other numbers of layers are refused.
    """
    if donor.is_bare or model.is_bare:
        return _align_bare(donor, model, problems)
    if model is donor:
        own = {name: name for name in donor.tensors}
        return Alignment(donor, own, _copies(donor), heads_differ=False, notes=_doubts(donor))
    if not _same_family(donor, model, problems):
        return None
    if same_depth and not _same_depth(donor, model, problems):
        return None
    ours, theirs = family(donor.config)[1], family(model.config)[1]
    heads_differ = ours != theirs or not ours  # old configurations do not say
    names, notes = _matched(donor, model, heads_differ=heads_differ)
    copies = _copies(donor)
    stand_ins = _stand_ins(donor, model, {**names, **copies}, heads_differ=heads_differ)
    notes += [f"its output head is tied: {e} stands in for {h}" for h, e in stand_ins.items()]
    return Alignment(model, {**names, **stand_ins}, _copies(model), heads_differ, tuple(notes))


def _align_bare(donor: Checkpoint, model: Checkpoint, problems: Problems) -> Alignment | None:
    """Match weights alone: by the same names, tied or not, for nothing says what they are."""
    if donor.is_bare != model.is_bare:
        file, folder = (donor, model) if donor.is_bare else (model, donor)
        problems.add(
            place_of(model),
            f"{file.label} is weights alone, {folder.label} is a model with a configuration",
            "merge files with files, or put the file into a folder with its config.json",
        )
        return None
    names = {name: name for name in donor.tensors if name in model.tensors}
    return Alignment(model, names, {}, heads_differ=False, notes=())


def _same_family(donor: Checkpoint, model: Checkpoint, problems: Problems) -> bool:
    """Check that two models are of one architecture, whatever their heads."""
    (kind, architecture), (other_kind, other) = family(donor.config), family(model.config)
    stems = sorted((_stem(architecture), _stem(other)), key=len)
    if len({kind, other_kind} - {""}) < 2 and stems[1].startswith(stems[0]):  # noqa: PLR2004
        return True
    custom = "auto_map" in model.config
    problems.add(
        place_of(model),
        f"another architecture: {other or other_kind or 'unknown'} ('{other_kind}'), "
        f"but {donor.label} is {architecture or kind} ('{kind}')"
        + (
            "; it asks for custom code (auto_map, trust_remote_code), which is never run"
            if custom
            else ""
        ),
        "merge models of one architecture",
    )
    return False


def _stem(architecture: str) -> str:
    """`Bert` of `BertForMaskedLM` and of `BertModel`."""
    return _HEAD_SUFFIX.split(architecture)[0]


def place_of(checkpoint: Checkpoint) -> str:
    """Name a model as messages do: by its folder, and its label if that differs."""
    folder = checkpoint.folder.name
    return folder if folder == checkpoint.label else f"{checkpoint.label} ({folder})"


def _same_depth(donor: Checkpoint, model: Checkpoint, problems: Problems) -> bool:
    ours, theirs = (c.config.get("num_hidden_layers") for c in (donor, model))
    if ours is None or theirs is None or ours == theirs:
        return True
    problems.add(
        f"{place_of(model)}/config.json",
        f"{theirs} layers (num_hidden_layers), but {donor.label} has {ours}",
        "merge models with the same number of layers",
    )
    return False


def _matched(
    donor: Checkpoint, model: Checkpoint, *, heads_differ: bool
) -> tuple[dict[str, str], list[str]]:
    """Pair the names, and say where they had to be translated."""
    same = {name: name for name in donor.tensors if name in model.tensors}
    prefixes = _prefixes(donor, model)
    names = {
        name: found for name in donor.tensors if (found := _found(name, prefixes, model.tensors))
    }
    # A body that lost or gained a prefix while its head lies beside it was saved from inside a
    # wrapper: loaders reject it, and so do we.
    bare = [pair for pair in prefixes if "" in pair]
    wrapped = not heads_differ and bare == prefixes and head_name(model.tensors) is not None
    if len(names) == len(same) or (prefixes and wrapped):
        return same, []
    changed = [f"'{ours}' is '{theirs}'" for ours, theirs in prefixes]
    note = "its tensors have other names than the base's, and were matched"
    return names, [f"{note}: {', '.join(changed)}" if changed else note]


def _prefixes(donor: Checkpoint, model: Checkpoint) -> list[tuple[str, str]]:
    """Find how parts are named in front: pairs of (the donor's, the model's), longest first.

    Stacks of layers that only one of the two has, with the same numbers, are the same part.
    """
    ours, theirs = _stacks(donor), _stacks(model)
    pairs = []
    for stack in [name for name in ours if name not in theirs]:
        last = stack.rpartition(".")[2]
        fronts = [
            _fronts(stack, other)
            for other in theirs
            if other not in ours
            and other.rpartition(".")[2] == last
            and theirs[other] == ours[stack]
        ]
        if fronts:
            pairs.append(min(fronts, key=lambda pair: len(pair[0])))
    return sorted(dict.fromkeys(pairs), key=lambda pair: -len(pair[0]))


def _stacks(checkpoint: Checkpoint) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name in checkpoint.tensors:
        layer = layer_of(name)
        if layer is not None:
            found.setdefault(layer[0], set()).add(layer[1])
    return found


def _fronts(one: str, other: str) -> tuple[str, str]:
    """Cut off the dotted parts that two names end with alike."""
    ours, theirs = one.split("."), other.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return ("".join(f"{part}." for part in ours), "".join(f"{part}." for part in theirs))


def _found(name: str, prefixes: list[tuple[str, str]], tensors: Mapping[str, Stored]) -> str | None:
    """Find a donor's tensor among a model's, under any name it may have there."""
    renamed = (
        theirs + name.removeprefix(ours) for ours, theirs in prefixes if name.startswith(ours)
    )
    for candidate in (name, *renamed):
        for spelling in (candidate, *_respelled(candidate)):
            if spelling in tensors:
                return spelling
    return head_name(tensors) if prefixes and head_name((name,)) else None


def _respelled(name: str) -> Iterable[str]:
    for pair in _SPELLINGS:
        for old, new in (pair, pair[::-1]):
            if name.endswith(old):
                yield name.removesuffix(old) + new


def _stand_ins(
    donor: Checkpoint, model: Checkpoint, names: Mapping[str, str], *, heads_differ: bool
) -> dict[str, str]:
    """Give the model's embedding for what the donor stores apart and the model ties to it."""
    embedding, ours = embedding_name(model.tensors), embedding_name(donor.tensors)
    said = _says_tied(model.config)
    tied = head_name(model.tensors) is None and (not heads_differ if said is None else said)
    if embedding is None or ours is None or not tied:
        return {}
    lacking = [name for name in donor.tensors if name not in names and layer_of(name) is None]
    return {
        name: embedding
        for name in lacking
        if head_name((name,)) or _equal(donor.tensors[ours], donor.tensors[name])
    }


def _says_tied(config: Mapping[str, Any]) -> bool | None:
    """Whether the output head is the input embedding; None where the configuration is silent."""
    inner = config.get("text_config")
    nested = inner.get("tie_word_embeddings") if isinstance(inner, dict) else None
    said = config.get("tie_word_embeddings", nested)
    return said if isinstance(said, bool) else None


def _copies(checkpoint: Checkpoint) -> dict[str, str]:
    """Find tensors that repeat another because the model ties them: left out, then tied again."""
    copies = dict(checkpoint.aliases)
    embedding, head = embedding_name(checkpoint.tensors), head_name(checkpoint.tensors)
    if embedding in copies and copies[embedding] == head:
        # A pickle may name the head first; the embedding is what loaders look for.
        del copies[embedding]
        copies = {name: embedding if at == head else at for name, at in copies.items()}
        copies[head] = embedding
    if _says_tied(checkpoint.config) is False and head in copies:
        del copies[head]
    if _says_tied(checkpoint.config) is not True or embedding is None:
        return copies
    first, updates = checkpoint.tensors[embedding], checkpoint.low_rank
    same = [
        name
        for name, stored in checkpoint.tensors.items()
        if layer_of(name) is None
        and updates.get(name) is updates.get(embedding)
        and (name == embedding or _equal(first, stored))
    ]
    kept = next((name for name in same if name.endswith("shared.weight")), embedding)
    return {**copies, **{name: kept for name in same if name != kept}}


def _doubts(donor: Checkpoint) -> tuple[str, ...]:
    head = head_name(donor.tensors)
    if head is None or head in _copies(donor) or not _says_tied(donor.config):
        return ()
    what = f"config.json ties {head} to the embedding, but both are stored and differ"
    return (f"{what}; both are merged, and loaders disagree on which is used",)


def _equal(one: Stored, other: Stored) -> bool:
    """Compare two tensors by shape, dtype and samples of their values."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if not (one.file.exists() and other.file.exists()):
        return False  # an earlier stage's result, where what was tied is one tensor already
    step = max(_SAMPLE, one.numel // _SAMPLES)
    return all(
        read_range(one, at, stop).equal(read_range(other, at, stop))
        for at in range(0, one.numel, step)
        if (stop := min(at + _SAMPLE, one.numel))
    )
