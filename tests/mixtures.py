"""Tiny dense models of the families that mixtures are made of, and mixtures of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from checkpoints import llama_config, llama_shapes, random_tensors, write_json, write_weights
from merges import tensors

from mergepipe.pipeline import merge, prepare

QUICKSTART = Path(__file__).parent.parent / "recipes/quickstart/base"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
SIZE = {"hidden": 16, "vocab": 1536}  # the quickstart's tokenizer
LAYERS = 2
PROMPTS = (["In the beginning", "And it came to pass, that"], ["def main(argv):"], ["47+8=55"])


def config(kind):
    """The config.json of a tiny model of a family, silent on what the families have defaults for."""
    found = llama_config(**SIZE, dtype="F32") | {"model_type": kind, "head_dim": 8}
    heads = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    found["architectures"] = [f"{heads[kind]}ForCausalLM"]
    if kind == "qwen2":
        del found["head_dim"]
    return found


def shapes(kind, **size):
    found = llama_shapes(**SIZE | size)
    hidden = (size or SIZE)["hidden"] if "hidden" in size else SIZE["hidden"]
    width = 8 if kind != "qwen2" else hidden // 4
    for name in list(found):
        if "self_attn" not in name:
            continue
        heads = 2 if ".k_proj" in name or ".v_proj" in name else 4
        found[name] = (hidden, 4 * width) if ".o_proj" in name else (heads * width, hidden)
        if kind == "qwen2" and ".o_proj" not in name:
            found[name.replace("weight", "bias")] = (heads * width,)
        if kind == "qwen3" and ".q_proj" in name:
            found[name.replace("q_proj", "q_norm")] = (width,)
            found[name.replace("q_proj", "k_norm")] = (width,)
    return found


def dense(folder, kind="llama", seed=0, **fields):
    """Write a tiny fp32 model with a tokenizer; large weights, so that nothing is nearly linear."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config(kind) | fields)
    values = random_tensors(shapes(kind), seed, "F32")
    values = {name: v * 10 if v.dim() > 1 else v for name, v in values.items()}
    write_weights(folder, values)
    for name in TOKENIZER:
        shutil.copyfile(QUICKSTART / name, folder / name)
    return folder


def family(folder, kind="llama"):
    """Write a base and two experts."""
    return {
        label: dense(folder / label, kind, seed) for seed, label in enumerate(("base", "a", "b"))
    }


def expert(model, at=0, **fields):
    return {"source_model": f"./{model}", "positive_prompts": PROMPTS[at], **fields}


def document(**fields):
    """A mixture of two experts, in the words of mergekit-moe."""
    experts = [expert("a", 0), expert("b", 1)]
    return {"base_model": "./base", "gate_mode": "cheap_embed", "experts": experts, **fields}


def prepared(folder, *, out="merged", tell=None, resources=None, **fields):
    (folder / "recipe.yaml").write_text(json.dumps(document(**fields)))
    return prepare(folder / "recipe.yaml", out=folder / out, tell=tell, resources=resources)


def mixed(folder, *, out="merged", **fields):
    """Make a mixture; its tensors."""
    return tensors(merge(prepared(folder, out=out, **fields), sync=False).folder)


def loaded(folder):
    """The model as transformers loads it in fp32; nothing may be missing or left over."""
    import transformers

    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12) * 7).logits
