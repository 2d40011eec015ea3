"""What tensor names say: the layer a tensor belongs to, and which one is the embedding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mergepipe.checkpoint.tensors import Stored

# Last module names of input embeddings, the commonest first.
_EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "word_embeddings",
    "tok_embeddings",
    "embed_in",
    "shared",
    "word_embedding",
    "embeddings",
)
_MATRIX = 2
# No model has a million layers, and int() refuses numbers of thousands of digits.
_MOST_DIGITS = 6


def layer_of(name: str) -> tuple[str, int] | None:
    """`("model.layers", 3)` for `model.layers.3.mlp.up_proj.weight`; None outside any stack."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isascii() and part.isdigit():
            return (".".join(parts[:at]), int(part)) if len(part) <= _MOST_DIGITS else None
    return None


def stacks(names: Iterable[str]) -> dict[str, set[int]]:
    """Layer numbers by stack: `{"model.layers": {0, 1}}`."""
    found: dict[str, set[int]] = {}
    for name in names:
        layer = layer_of(name)
        if layer:
            found.setdefault(layer[0], set()).add(layer[1])
    return found


def embeddings(tensors: Mapping[str, Stored]) -> tuple[str, ...]:
    """Names of the matrices that may be the input embedding, the likeliest first."""
    ranked: list[tuple[int, int, str]] = []
    for name, stored in tensors.items():
        module = name.removesuffix(".weight").rpartition(".")[2]
        is_matrix = len(stored.shape) == _MATRIX and name.endswith(".weight")
        if is_matrix and module in _EMBEDDINGS:
            ranked.append((_EMBEDDINGS.index(module), len(name), name))
    return tuple(name for _, _, name in sorted(ranked))


def embedding_name(tensors: Mapping[str, Stored]) -> str | None:
    """Name of the input embedding (rows: vocabulary, columns: hidden size), if it can be told."""
    return next(iter(embeddings(tensors)), None)
