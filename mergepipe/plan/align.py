"""Which tensor of one model is which tensor of another, by name alone.

Models of one family may differ in their heads (a classifier beside a language model), in the
prefix that a head adds (`bert.encoder...` beside `encoder...`), in buffers, and in whether the
output head is stored or tied to the input embedding. Anything else that differs is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mergepipe.checkpoint import Checkpoint, embedding_name, family, layer_of
from mergepipe.errors import Problems, printable

__all__ = ["Alignment", "align", "is_buffer", "same_family", "shown_names", "tied_head"]

HEAD = "lm_head.weight"
# What a module keeps beside its parameters; derived from the configuration, never merged.
_BUFFER = re.compile(
    r"(^|\.)((original_)?inv_freq|position_ids|token_type_ids|masked_bias|attn\.bias"
    r"|num_batches_tracked|rotary_emb\.(cos|sin)_cached)$"
)
_HEAD_SUFFIX = re.compile(r"(For[A-Z]|LMHead|DoubleHeads|Model$|PreTrained)")


@dataclass(frozen=True, slots=True)
class Alignment:
    """How one model's tensors are found by the donor's names."""

    checkpoint: Checkpoint
    names: Mapping[str, str]  # donor's name -> this model's name
    heads_differ: bool
    notes: tuple[str, ...]


def is_buffer(name: str) -> bool:
    """Tell a known non-parameter by its name."""
    return _BUFFER.search(name) is not None


def shown_names(names: Collection[str], most: int = 3) -> str:
    """`a, b, c and 4 more`, escaped."""
    shown = ", ".join(printable(name, 200) for name in list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _stem(architecture: str) -> str:
    """`Bert` of `BertForMaskedLM` and of `BertModel`."""
    return _HEAD_SUFFIX.split(architecture)[0]


def tied_head(checkpoint: Checkpoint) -> str | None:
    """Give the input embedding's name if the model's output head is tied to it, else None.

    It is tied if no head is stored and the configuration does not say otherwise.
    """
    if HEAD in checkpoint.tensors and not _says_tied(checkpoint.config):
        return None
    if _text_config(checkpoint.config).get("tie_word_embeddings", True) is False:
        return None
    return embedding_name(checkpoint.tensors)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) and "tie_word_embeddings" in inner else config


def _says_tied(config: Mapping[str, Any]) -> bool:
    return _text_config(config).get("tie_word_embeddings") is True


def same_family(donor: Checkpoint, model: Checkpoint, problems: Problems) -> bool:
    """Check that two models are of one architecture, whatever their heads."""
    (kind, architecture), (other_kind, other) = family(donor.config), family(model.config)
    if kind == other_kind and (_stem(architecture) == _stem(other) or not (architecture and other)):
        return True
    custom = "auto_map" in model.config
    problems.add(
        _place(model),
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


def _place(checkpoint: Checkpoint) -> str:
    folder = checkpoint.folder.name
    return folder if folder == checkpoint.label else f"{checkpoint.label} ({folder})"


def align(donor: Checkpoint, model: Checkpoint, problems: Problems) -> Alignment | None:
    """Find the model's tensors by the donor's names; None if it is another architecture."""
    if model is donor:
        return Alignment(donor, {name: name for name in donor.tensors}, False, ())
    if not same_family(donor, model, problems) or not _same_depth(donor, model, problems):
        return None
    heads_differ = family(donor.config)[1] != family(model.config)[1]
    prefix = _prefix(donor, model) if heads_differ else None
    names = {name: name for name in donor.tensors if name in model.tensors}
    notes = []
    if prefix is not None:
        names = _renamed(donor, model, *prefix)
        change = f"without '{prefix[0]}'" if prefix[0] else f"with '{prefix[1]}' in front"
        notes.append(f"its tensors are named {change}; matched by the rest of the name")
    embedding = tied_head(model)
    if HEAD in donor.tensors and HEAD not in names and embedding and tied_head(donor) is None:
        names[HEAD] = embedding
        notes.append(f"its output head is tied: {embedding} stands in for {HEAD}")
    return Alignment(model, names, heads_differ, tuple(notes))


def _same_depth(donor: Checkpoint, model: Checkpoint, problems: Problems) -> bool:
    ours, theirs = (c.config.get("num_hidden_layers") for c in (donor, model))
    if ours is None or theirs is None or ours == theirs:
        return True
    problems.add(
        f"{_place(model)}/config.json",
        f"{theirs} layers (num_hidden_layers), but {donor.label} has {ours}",
        "merge models with the same number of layers",
    )
    return False


def _prefix(donor: Checkpoint, model: Checkpoint) -> tuple[str, str] | None:
    """Find (what the donor's names have in front, what the model's have), from their layers."""
    ours, theirs = _layer_stacks(donor), _layer_stacks(model)
    if ours & theirs:
        return None
    for own in sorted(ours):
        for other in sorted(theirs):
            if own.endswith("." + other):
                return own[: -len(other)], ""
            if other.endswith("." + own):
                return "", other[: -len(own)]
    return None


def _layer_stacks(checkpoint: Checkpoint) -> set[str]:
    return {found[0] for name in checkpoint.tensors if (found := layer_of(name)) is not None}


def _renamed(donor: Checkpoint, model: Checkpoint, ours: str, theirs: str) -> dict[str, str]:
    names = {}
    for name in donor.tensors:
        other = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        if other in model.tensors:
            names[name] = other
    return names
