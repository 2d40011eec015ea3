"""What of a fine-tune an adapter takes: matrices as low-rank updates, modules whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mergepipe.checkpoint import Checkpoint, Stored, embedding_name, family, layer_of
from mergepipe.errors import Problems, did_you_mean

__all__ = ["Choice", "choose", "module_of", "modules_above"]

_HEADS = (".lm_head.weight", ".embed_out.weight", ".output_projection.weight")
# Embeddings, though in a layer and matrices: T5's buckets of distances.
_TABLES = (".relative_attention_bias.weight",)
# Families whose layers are Conv1D: their matrices are stored as [in, out].
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_MATRIX = 2
_MOST_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """The names of tensors, by what becomes of them."""

    low_rank: tuple[str, ...]
    whole: tuple[str, ...]
    compared: tuple[str, ...]
    embedding: str | None  # the one among those taken that is the input embedding
    ties_head: bool  # whether the output head is that embedding too
    fan_in_fan_out: bool

    def is_transposed(self, name: str) -> bool:
        """Tell whether a tensor is stored as [in, out], so that B @ A is its transpose."""
        return name == self.embedding or (self.fan_in_fan_out and layer_of(name) is not None)


def module_of(name: str) -> str:
    """Give the module that a tensor belongs to: `model.norm` for `model.norm.weight`."""
    return name.rpartition(".")[0]


def modules_above(names: Iterable[str]) -> dict[str, None]:
    """Give the modules that tensors belong to, and all that contain those."""
    found: dict[str, None] = {}
    for name in names:
        module = module_of(name)
        while module and module not in found:
            found[module] = None
            module = module_of(module)
    return found


def choose(
    model: Checkpoint,
    base: Checkpoint,
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    save: Sequence[str],
    embeddings: bool,
    problems: Problems,
) -> Choice:
    """Sort the tensors of a fine-tune; what cannot be taken goes to `problems`."""
    both = [name for name in model.tensors if _is_comparable(name, model, base)]
    _warn_unmatched(model, base, problems)
    saved = _saved(save, both, problems)
    embedding = embedding_name(base.tensors)
    candidates = [name for name in both if name not in saved and _is_linear(base.tensors[name])]
    inner = [
        name
        for name in candidates
        if _is_layer_matrix(name) or (embeddings and (name == embedding or _is_head(name)))
    ]
    low_rank = _filtered(inner, include, exclude, problems)
    taken = {*low_rank, *saved}
    same = {name for name in both if model.tensors[name].shape == base.tensors[name].shape}
    _check_shapes([name for name in both if name in taken - same], model, base, problems)
    return Choice(
        low_rank=tuple(low_rank),
        whole=tuple(saved),
        compared=tuple(name for name in both if name in same - taken),
        embedding=embedding if embedding in taken else None,
        ties_head=embedding in taken and _is_tied(base),
        fan_in_fan_out=family(base.config)[0] in _CONV1D,
    )


def _is_comparable(name: str, model: Checkpoint, base: Checkpoint) -> bool:
    """Tell whether both have a tensor of floats by this name, and not as another name of one."""
    if name in model.aliases or name in base.aliases or name not in base.tensors:
        return False
    return model.tensors[name].is_float and base.tensors[name].is_float


def _is_linear(stored: Stored) -> bool:
    return len(stored.shape) == _MATRIX and stored.name.endswith(".weight")


def _is_layer_matrix(name: str) -> bool:
    return layer_of(name) is not None and not name.endswith(_TABLES)


def _is_head(name: str) -> bool:
    return f".{name}".endswith(_HEADS)


def _is_tied(base: Checkpoint) -> bool:
    says_untied = base.config.get("tie_word_embeddings") is False
    return not says_untied and not any(map(_is_head, base.tensors))


def _fits(name: str, glob: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(module_of(name), glob)


def _filtered(
    names: Sequence[str], include: Sequence[str], exclude: Sequence[str], problems: Problems
) -> list[str]:
    """Give the names that a glob of `include` fits, if there are any, and none of `exclude`."""
    for option, globs in (("--include", include), ("--exclude", exclude)):
        for glob in globs:
            if not any(_fits(name, glob) for name in names):
                known = ", ".join(names[:_MOST_SHOWN])
                problems.add(f"{option} '{glob}'", "fits no matrix of a layer", f"such as {known}")
    kept = [name for name in names if not include or any(_fits(name, glob) for glob in include)]
    return [name for name in kept if not any(_fits(name, glob) for glob in exclude)]


def _saved(save: Sequence[str], both: Sequence[str], problems: Problems) -> dict[str, None]:
    """Give the tensors of modules named in full, or by the last part of their names."""
    found: dict[str, None] = {}
    lasts = {name: module_of(name).rpartition(".")[2] for name in both}
    for module in save:
        fitting = [name for name in both if module in (module_of(name), lasts[name])]
        if not fitting:
            near = did_you_mean(module, set(lasts.values()))
            problems.add(f"--save-module '{module}'", f"no module has this name{near}")
        found |= dict.fromkeys(fitting)
    return found


def _check_shapes(
    names: Sequence[str], model: Checkpoint, base: Checkpoint, problems: Problems
) -> None:
    for name in names:
        shapes = f"{list(model.tensors[name].shape)}, in the base {list(base.tensors[name].shape)}"
        problems.add(
            f"{model.label}: {name}",
            f"has shape {shapes}: an adapter cannot change shapes",
            "is it a fine-tune of this base? else leave the tensor out by --exclude",
        )


def _warn_unmatched(model: Checkpoint, base: Checkpoint, problems: Problems) -> None:
    """Say which tensors an adapter cannot bring along: new ones, and those of other shapes."""
    for one, other in ((model, base), (base, model)):
        names = [name for name in one.tensors if name not in other.tensors]
        _warn(f"{one.label}: tensors that the {other.label} does not have", names, problems)
    shared: Mapping[str, Stored] = {n: s for n, s in model.tensors.items() if n in base.tensors}
    resized = [name for name, one in shared.items() if one.shape != base.tensors[name].shape]
    _warn("tensors of other shapes than in the base", resized, problems)


def _warn(what: str, names: Sequence[str], problems: Problems) -> None:
    if names:
        more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
        problems.warn(what, f"{', '.join(names[:_MOST_SHOWN])}{more}; not in the adapter")
