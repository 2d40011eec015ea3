"""Weights alone, as `mergekit-pytorch` merges them, by mergekit 0.1.5 and by us."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from both import assert_alike
from merges import tensors
from safetensors.torch import save_file
from test_mergekit_dialect import by_us, written

SHAPES = {"conv.weight": (4, 3, 3, 3), "blocks.0.fc.weight": (8, 6), "blocks.1.fc.weight": (8, 6)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    found = {"base": "base.pt", "a": "a.safetensors", "b": "b.bin", "c": "c.pth"}
    for seed, file in enumerate(found.values()):
        draw = torch.Generator().manual_seed(seed)
        values = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
        (save_file if file.endswith("safetensors") else torch.save)(values, folder / file)
    return {label: folder / name for label, name in found.items()}


def by_mergekit(file):
    from mergekit.graph import Executor
    from mergekit.options import MergeOptions
    from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, plan_flat_merge

    config = RawPyTorchMergeConfig.model_validate(yaml.safe_load(file.read_text()))
    out = file.parent / "theirs"
    tasks = plan_flat_merge(
        config, str(out), tensor_union=False, tensor_intersection=False, options=MergeOptions()
    )
    Executor(tasks, math_device="cpu", storage_device="cpu").execute()
    return out


CONFIGURATIONS = {
    "linear": """
        models:
          - {model: $a, parameters: {weight: [{filter: conv, value: 1}, {value: 0.3}]}}
          - {model: $b, parameters: {weight: 0.5}}
        merge_method: linear
    """,
    "linear, a base that is not listed": """
        models: [{model: $a}, {model: $b}]
        merge_method: linear
        base_model: $base
        parameters: {weight: 0.7}
    """,
    "ties, with a gradient that has nothing to run over": """
        models:
          - {model: $a, parameters: {weight: [0.2, 0.9], density: 0.5}}
          - {model: $b, parameters: {weight: 0.5, density: 0.3}}
          - {model: $c, parameters: {weight: 1, density: 0.7}}
        merge_method: ties
        base_model: $base
        dtype: float32
    """,
    "slerp": """
        models: [{model: $base}, {model: $c}]
        merge_method: slerp
        base_model: $base
        parameters: {t: 0.3}
    """,
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_weight_files_are_merged_as_by_mergekit(files, tmp_path, name):
    file = written(tmp_path, files, CONFIGURATIONS[name])
    ours, theirs = tensors(by_us(file)), tensors(by_mergekit(file))
    assert_alike(ours, theirs, rtol=2e-6, atol=2e-7)


def test_the_result_is_weights_and_records_of_how_it_was_made(files, tmp_path):
    ours = by_us(written(tmp_path, files, CONFIGURATIONS["slerp"]))
    written_there = {one.name for one in ours.iterdir()}
    assert written_there == {"mergepipe.json", "model.safetensors", "run.json"}
    inputs = json.loads((ours / "mergepipe.json").read_text())["inputs"]
    assert inputs["base.pt"]["source"] == {"file": "base.pt"}
    assert list(inputs["c.pth"]["files"]) == ["c.pth"]
