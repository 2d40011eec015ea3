"""Make Llama-shaped checkpoints of any size: a base and experts near it, or sparse files.

    python benchmarks/synthetic.py /tmp/bench --size 1b --experts 2
    python benchmarks/synthetic.py /tmp/bench70 --size 70b --experts 2 --sparse

Values are normal, σ = 0.02; an expert differs from the base by normal noise, σ = 0.0005, in bf16.
`--sparse` writes real headers over files without data blocks: enough to plan, and to measure how
long planning takes. A recipe for each of several methods is written beside the models.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

SHARD_BYTES = 5_000_000_000
RECIPE = """\
mergepipe: 1
models:
  base: ./base
{models}
merge:
  method: {method}
{base}  models: [{labels}]
{parameters}output: {{path: ./out-{method}, dtype: bfloat16}}
"""


@dataclass(frozen=True)
class Shape:
    """The numbers that give a Llama its size."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int


SIZES = {
    "0.02b": Shape(4, 512, 1408, 8, 4, 8000),
    "0.1b": Shape(12, 768, 2048, 12, 4, 32000),
    "1b": Shape(22, 2048, 5632, 32, 4, 32000),  # TinyLlama: 1.10 billion parameters
    "4b": Shape(32, 3072, 8192, 32, 8, 32064),
    "8b": Shape(32, 4096, 14336, 32, 8, 128256),
    "70b": Shape(80, 8192, 28672, 64, 8, 128256),
}


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, in the order in which transformers stores them."""
    key_values = shape.hidden // shape.heads * shape.kv_heads
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (shape.hidden,)
        yield prefix + "mlp.down_proj.weight", (shape.hidden, shape.intermediate)
        yield prefix + "mlp.gate_proj.weight", (shape.intermediate, shape.hidden)
        yield prefix + "mlp.up_proj.weight", (shape.intermediate, shape.hidden)
        yield prefix + "post_attention_layernorm.weight", (shape.hidden,)
        yield prefix + "self_attn.k_proj.weight", (key_values, shape.hidden)
        yield prefix + "self_attn.o_proj.weight", (shape.hidden, shape.hidden)
        yield prefix + "self_attn.q_proj.weight", (shape.hidden, shape.hidden)
        yield prefix + "self_attn.v_proj.weight", (key_values, shape.hidden)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (shape.vocab, shape.hidden)


def config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def shards(shape: Shape) -> list[list[tuple[str, tuple[int, ...]]]]:
    parts: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, extent in tensors(shape):
        size = 2 * int(np.prod(extent))
        if filled + size > SHARD_BYTES and parts[-1]:
            parts.append([])
            filled = 0
        parts[-1].append((name, extent))
        filled += size
    return parts


def header(part: list[tuple[str, tuple[int, ...]]]) -> tuple[bytes, int]:
    entries, end = {}, 0
    for name, extent in part:
        start, end = end, end + 2 * int(np.prod(extent))
        entries[name] = {"dtype": "BF16", "shape": list(extent), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def values(name: str, extent: tuple[int, ...], expert: int) -> torch.Tensor:
    """The same base for every expert, whose noise depends on its number."""
    count = int(np.prod(extent))
    draw = torch.Generator().manual_seed(hash_of(name))
    base = torch.randn(count, generator=draw).mul_(0.02)
    if expert:
        draw.manual_seed(hash_of(f"{name}/{expert}"))
        base.add_(torch.randn(count, generator=draw), alpha=0.0005)
    return base.to(torch.bfloat16)


def hash_of(text: str) -> int:
    # 32 bits: torch's generator on the CPU does not look at the others.
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "little")


def write_model(folder: Path, shape: Shape, expert: int, *, sparse: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2))
    parts = shards(shape)
    weight_map = {}
    for i, part in enumerate(parts, 1):
        single = len(parts) == 1
        file = "model.safetensors" if single else f"model-{i:05d}-of-{len(parts):05d}.safetensors"
        weight_map |= {name: file for name, _ in part}
        head, size = header(part)
        with (folder / file).open("wb") as out:
            out.write(head)
            if sparse:
                out.truncate(len(head) + size)
                continue
            for name, extent in part:
                out.write(values(name, extent, expert).view(torch.int16).numpy().tobytes())
    if len(parts) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


METHODS = {
    "linear": "",
    "slerp": "  t: 0.4\n",
    "task_arithmetic": "  lambda: 0.5\n",
    "ties": "  scope: tensor\n",
    "dare_ties": "",
    "dare_linear": "",
}


def write_recipes(folder: Path, experts: int) -> None:
    labels = [f"expert{i}" for i in range(1, experts + 1)]
    for method, parameters in METHODS.items():
        used = labels[:1] if method == "slerp" else labels
        recipe = RECIPE.format(
            models="\n".join(f"  {label}: ./{label}" for label in used),
            method=method,
            base="" if method == "linear" else "  base: base\n",
            labels=", ".join(["base", *used] if method == "linear" else used),
            parameters=parameters,
        )
        (folder / f"{method}.yaml").write_text(recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--sparse", action="store_true")
    options = parser.parse_args()
    shape = SIZES[options.size]
    for expert in range(options.experts + 1):
        name = f"expert{expert}" if expert else "base"
        write_model(options.folder / name, shape, expert, sparse=options.sparse)
        print(f"{name}: {sum(int(np.prod(e)) for _, e in tensors(shape)):,} parameters")
    write_recipes(options.folder, options.experts)


if __name__ == "__main__":
    main()
