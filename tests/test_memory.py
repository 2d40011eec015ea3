"""Memory stays within what is allowed, whatever the size of the tensors and their number."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from checkpoints import llama_config, llama_shapes, write_json
from peak import peak_bytes, peak_of_merge
from sinks import Dropped

from mergepipe.execute import execute
from mergepipe.pipeline import prepare

MIB = 1 << 20
LABELS = ("base", "a", "b")
# Python, numpy, numba and what they allocate beside buffers.
REST = 300 * MIB
TIES = {"method": "ties", "base": "base", "models": ["a"], "scope": "tensor"}
WHOLE_TIES = TIES | {"scope": "model"}
LINEAR = {"method": "linear", "models": ["a", "b"]}


def header_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """The beginning of a safetensors file of bf16 tensors, and the bytes of the rest."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def write_model(folder: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, **config: int):
    """Write a checkpoint of bf16 tensors: a hole, or a run of random values again and again."""
    folder.mkdir()
    write_json(folder / "config.json", llama_config(**config))
    header, size = header_of(shapes)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        if seed:
            values = np.random.default_rng(seed).standard_normal(3_333_333, np.float32)
            run = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes()
            for start in range(0, size, len(run)):
                file.write(run[: size - start])
        file.truncate(len(header) + size)


def write_recipe(folder: Path, spec, shapes, *, values=True, **config) -> Path:
    """Write models and a recipe that merges them."""
    labels = [label for label in LABELS if label in (spec.get("base"), *spec["models"])]
    for seed, label in enumerate(labels, 1):
        write_model(folder / label, shapes, seed if values else 0, **config)
    recipe = {"mergepipe": 1, "models": {x: f"./{x}" for x in labels}, "merge": spec}
    return write_json(folder / "recipe.yaml", recipe)


def one_tensor(nbytes, hidden=1024):
    """A Llama that is little but its embedding: config, and shapes."""
    config = {"layers": 1, "hidden": hidden, "vocab": nbytes // 2 // hidden, "tied": True}
    return config, llama_shapes(**config)


@pytest.fixture
def folder(tmp_path):
    """A folder whose large files do not outlive the test."""
    yield tmp_path
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()


@pytest.fixture(scope="module", autouse=True)
def _compiled(tmp_path_factory):
    """Kernels that are compiled already: the compiler takes much memory, once."""
    config, shapes = one_tensor(MIB, hidden=64)
    for name, spec in {"t": TIES, "m": WHOLE_TIES, "l": LINEAR}.items():
        recipe = write_recipe(tmp_path_factory.mktemp(name), spec, shapes, **config)
        execute(prepare(recipe).plans[0], Dropped())


def test_the_peak_of_a_program_is_its_own():
    assert peak_bytes(["-c", "x = bytearray(100 << 20)"]) - peak_bytes(["-c", ""]) > 99 * MIB
    assert peak_bytes(["-c", ""]) < 50 * MIB


@pytest.mark.parametrize("spec", [TIES, WHOLE_TIES, LINEAR], ids=["ties", "whole", "linear"])
def test_a_tensor_larger_than_the_memory_is_merged_within_it(folder, spec):
    config, shapes = one_tensor(250 * MIB)
    recipe = write_recipe(folder, spec, shapes, **config)
    assert peak_of_merge(recipe, threads=2, max_memory=64 * MIB) < 64 * MIB + REST


def test_the_number_of_layers_does_not_change_the_peak(tmp_path):
    peaks = []
    for layers in (12, 48):
        config = {"layers": layers, "hidden": 192, "vocab": 4000}
        (tmp_path / str(layers)).mkdir()
        recipe = write_recipe(
            tmp_path / str(layers), WHOLE_TIES, llama_shapes(**config), values=False, **config
        )
        peaks.append(peak_of_merge(recipe, threads=2, max_memory=64 * MIB))
    assert max(peaks) < 1.1 * min(peaks)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [TIES, LINEAR], ids=["ties", "linear"])
def test_three_gigabytes_of_one_tensor_are_merged_in_half_of_one(tmp_path, spec):
    config, shapes = one_tensor(3_000_000_000 // 2048 * 2048)
    recipe = write_recipe(tmp_path, spec, shapes, values=False, **config)
    assert peak_of_merge(recipe, threads=2, max_memory=512 * MIB) < 512 * MIB + REST


@pytest.mark.slow
def test_a_billion_parameters_are_trimmed_as_one_within_the_memory(tmp_path):
    config = {"layers": 22, "hidden": 2048, "vocab": 32000}
    recipe = write_recipe(tmp_path, WHOLE_TIES, llama_shapes(**config), values=False, **config)
    assert peak_of_merge(recipe, threads=2, max_memory=512 * MIB) < 512 * MIB + REST
