"""Recipes over three tiny Llamas, run; what they gave."""

from __future__ import annotations

import json
from hashlib import sha256

import torch
from checkpoints import (
    llama_config,
    llama_shapes,
    random_tensors,
    write_json,
    write_safetensors,
    write_weights,
)
from safetensors.torch import load_file

from mergepipe.execute import Resources
from mergepipe.manifest import RUN_FILE
from mergepipe.pipeline import merge, prepare

FILE = "model.safetensors"
NORM = "model.norm.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
SHAPES = llama_shapes(hidden=16, vocab=40)
TIES = {"method": "ties", "base": "base", "models": {"a": {"weight": 0.7}, "b": {"density": 0.5}}}
LINEAR = {"method": "linear", "models": {"a": {"weight": 0.3}, "b": {"weight": 0.7}}}
TASKS = {"method": "task_arithmetic", "base": "base", "models": ["a", "b"], "lambda": 0.5}
SLERP = {"method": "slerp", "base": "base", "models": ["a"], "t": 0.3}
DARE = {"method": "dare_ties", "base": "base", "models": ["a", "b"], "rescale": "l1"}


def small(folder, seed, dtype="BF16", tensors=None, shards=1):
    """Write a Llama of 2 layers, 16 wide, with these tensors or random ones."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", llama_config(hidden=16, vocab=40, dtype=dtype))
    write_weights(folder, tensors or random_tensors(SHAPES, seed, dtype), shards)
    return folder


def write_models(folder):
    """Write a base and two experts."""
    for seed, label in enumerate(("base", "a", "b")):
        small(folder / label, seed)
    return folder


def planned(folder, spec, *, threads=1, out="merged", labels=("base", "a", "b"), **fields):
    """Prepare a recipe over the models in `folder`: one merge, or stages."""
    body = {"stages": spec} if "method" not in spec else {"merge": spec}
    sources = fields.pop("models", {label: f"./{label}" for label in labels})
    recipe = {"mergepipe": 1, "models": sources, **body, **fields}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    resources = Resources(threads=threads)
    return prepare(folder / "recipe.yaml", out=folder / out, resources=resources)


def run(folder, spec, *, overwrite=False, **options):
    return tensors(merge(planned(folder, spec, **options), overwrite=overwrite).folder)


def tensors(folder):
    return {
        k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()
    }


def harm(folder, name, value):
    """Put one value into one tensor of a model."""
    found = tensors(folder)
    found[name].flatten()[-1] = value
    write_safetensors(folder / FILE, found)


def digests(folder):
    """Digests of all files but the one that says when and how fast they were made."""
    files = sorted(path for path in folder.iterdir() if path.name != RUN_FILE)
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in files}


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, tensor in actual.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
