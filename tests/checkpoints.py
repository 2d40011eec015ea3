"""Builders of tiny checkpoints, healthy ones: tests break them as they need.

All are pure functions of their arguments: the same call writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The values of a tensor as they stand in a safetensors file."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def header_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The header of a safetensors file that holds `tensors` in their order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        stop = offset + tensor.numel() * tensor.element_size()
        shape, dtype = list(tensor.shape), DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    return header


def write_raw(path: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    """Write a safetensors file from its parts, with `length` as the length of the header."""
    said = len(header) if length is None else length
    path.write_bytes(said.to_bytes(8, "little") + header + data)
    return path


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any] | None = None
) -> Path:
    """Write `tensors` to a safetensors file, under another `header` if one is given."""
    text = json.dumps(header_of(tensors) if header is None else header)
    # Padded as safetensors does, so that the data is aligned.
    padded = text.encode() + b" " * (-len(text.encode()) % 8)
    return write_raw(path, padded, b"".join(map(tensor_bytes, tensors.values())))


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
    return path


def edit_json(path: Path, **fields: Any) -> Path:
    """Set top-level fields of a JSON file."""
    return write_json(path, json.loads(path.read_text(encoding="utf-8")) | fields)


def llama_config(
    *, layers: int = 2, hidden: int = 64, vocab: int = 320, dtype: str = "BF16", tied: bool = False
) -> dict[str, Any]:
    """The config.json of a tiny Llama: 4 heads, 2 key-value heads, MLP twice the hidden size."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": tied,
        "torch_dtype": str(_TORCH_DTYPES[dtype]).removeprefix("torch."),
    }


def llama_shapes(
    *, layers: int = 2, hidden: int = 64, vocab: int = 320, tied: bool = False
) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of that Llama, in the order in which transformers saves them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "mlp.down_proj.weight": (hidden, 2 * hidden),
            prefix + "mlp.gate_proj.weight": (2 * hidden, hidden),
            prefix + "mlp.up_proj.weight": (2 * hidden, hidden),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.k_proj.weight": (hidden // 2, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.v_proj.weight": (hidden // 2, hidden),
        }
    shapes["model.norm.weight"] = (hidden,)
    return shapes if tied else shapes | {"lm_head.weight": (vocab, hidden)}


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int = 0, dtype: str = "BF16"
) -> dict[str, torch.Tensor]:
    """Normal values of standard deviation 0.02; vectors (norms) around 1."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=draw) * 0.02 + (len(shape) == 1)).to(
            _TORCH_DTYPES[dtype]
        )
        for name, shape in shapes.items()
    }


def llama(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    vocab: int = 320,
    dtype: str = "BF16",
    shards: int = 1,
    tied: bool = False,
) -> Path:
    """Write a tiny Llama that transformers loads: config.json and safetensors, no tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = llama_config(layers=layers, hidden=hidden, vocab=vocab, dtype=dtype, tied=tied)
    shapes = llama_shapes(layers=layers, hidden=hidden, vocab=vocab, tied=tied)
    write_json(folder / "config.json", config)
    write_weights(folder, random_tensors(shapes, seed, dtype), shards)
    return folder


def write_weights(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> None:
    """Write `tensors` to one file, or to `shards` files of about as many tensors and an index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    weight_map: dict[str, str] = {}
    for at, names in enumerate(_parts(list(tensors), shards)):
        file = f"model-{at + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def _parts(names: Sequence[str], count: int) -> list[Sequence[str]]:
    cuts = [len(names) * at // count for at in range(count + 1)]
    return [names[low:high] for low, high in pairwise(cuts)]
