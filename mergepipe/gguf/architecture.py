"""What GGUF calls the settings and tensors of an architecture, and how it lays queries out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergepipe.errors import InputError, Problem, printable

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["ARCHITECTURES", "Architecture", "add_settings", "architecture_of", "rope_factors"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture by GGUF's name.

    With `interleaves` the halves that rotate together stand beside each other in the rows of
    queries and keys, and not half a head apart as in transformers.
    """

    name: str
    interleaves: bool


ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", interleaves=True),
    "MistralForCausalLM": Architecture("llama", interleaves=True),
    "Qwen2ForCausalLM": Architecture("qwen2", interleaves=False),
    "Qwen3ForCausalLM": Architecture("qwen3", interleaves=False),
}
_ROTATIONS = ("default", "linear", "llama3")


def architecture_of(config: Mapping[str, Any], where: str) -> Architecture:
    """Give the architecture of a configuration.

    Raises
    ------
    InputError
        if it is none of those above, or its positions are encoded in a way that is not known here.

    """
    names = [one for one in config.get("architectures") or () if isinstance(one, str)]
    known = [ARCHITECTURES[name] for name in names if name in ARCHITECTURES]
    if not known:
        what = f"GGUF files of {printable(', '.join(names)) or 'no architecture'} cannot be made"
        fix = f"known: {', '.join(ARCHITECTURES)}; llama.cpp's convert_hf_to_gguf.py knows others"
        raise InputError(Problem(where, what, fix))
    kind = _rotation(config).get("rope_type", "default")
    if kind not in _ROTATIONS:
        what = f"rope_type {printable(str(kind))} cannot be written"
        raise InputError(Problem(where, what, "llama.cpp's convert_hf_to_gguf.py may know it"))
    return known[0]


def _rotation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the settings of rotary embeddings, where versions of transformers put them."""
    older = dict(config.get("rope_scaling") or {})
    older.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    if "type" in older:
        older.setdefault("rope_type", older["type"])
    return config.get("rope_parameters") or older


def _head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def add_settings(writer: GGUFWriter, config: Mapping[str, Any], rows: int) -> None:
    """Add what a configuration says of the shapes; `rows` is the size of the vocabulary."""
    rotation, size = _rotation(config), _head_size(config)
    heads = int(config["num_attention_heads"])
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(rotation.get("rope_theta", 10000.0)))
    writer.add_rope_dimension_count(size)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_vocab_size(rows)
    if rotation.get("rope_type") == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rotation["factor"]))


def rope_factors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Give what llama3's scaling divides each frequency by; None where nothing is scaled so.

    Frequencies with wavelengths above the old context are divided by `factor`, those well below
    stay, and between the two there is a line (Llama 3.1's release).
    """
    rotation, size = _rotation(config), _head_size(config)
    if rotation.get("rope_type") != "llama3":
        return None
    factor, old = float(rotation["factor"]), rotation["original_max_position_embeddings"]
    low, high = float(rotation["low_freq_factor"]), float(rotation["high_freq_factor"])
    found = []
    for at in range(0, size, 2):
        wavelength = 2 * math.pi * float(rotation["rope_theta"]) ** (at / size)
        smooth = (old / wavelength - low) / (high - low)
        share = min(max(smooth, 0.0), 1.0)
        found.append(1 / ((1 - share) / factor + share))
    return np.array(found, np.float32)
