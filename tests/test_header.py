"""Headers of any size and any content: read as safetensors reads them, or refused."""

from __future__ import annotations

import json
import math
import os
import time

import torch
from checkpoints import (
    DTYPE_NAMES,
    llama_config,
    llama_shapes,
    write_json,
    write_raw,
    write_safetensors,
)
from faulty import local, open_timed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_bytes

from mergepipe.checkpoint import (
    ModelSource,
    open_checkpoint,
)
from mergepipe.checkpoint.files import FileFaultError
from mergepipe.checkpoint.header import read_header
from mergepipe.errors import Problems

FILE = "model.safetensors"


def opened(folder):
    checkpoint, problems = open_timed(local(folder))
    assert checkpoint is not None, problems
    return checkpoint


def sparse_shard(path, shapes):
    """Write a bf16 file of these shapes whose values take no room."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        stop = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    write_raw(path, json.dumps(header).encode(), b"")
    os.truncate(path, path.stat().st_size + offset)


def test_a_model_of_70_billion_parameters_opens_within_a_second(tmp_path):
    config = llama_config(layers=80, hidden=8192, vocab=128_256)
    shapes = list(llama_shapes(layers=80, hidden=8192, vocab=128_256).items())
    weight_map = {}
    for shard in range(30):
        part = dict(shapes[shard::30])
        sparse_shard(tmp_path / f"{shard}.safetensors", part)
        weight_map |= dict.fromkeys(part, f"{shard}.safetensors")
    write_json(tmp_path / "config.json", config)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})
    began = time.monotonic()
    assert len(opened(tmp_path).tensors) == 723
    assert time.monotonic() - began < 1


def test_a_header_of_100000_tensors_is_read_in_seconds(tmp_path):
    sparse_shard(
        tmp_path / FILE, {f"layers.{i}.experts.{i}.weight": [2, 2] for i in range(100_000)}
    )
    began = time.process_time()
    tensors, faults = read_header(tmp_path / FILE)
    assert (len(tensors), faults) == (100_000, [])
    assert time.process_time() - began < 10


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
tensors = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(list(DTYPE_NAMES)),
)


@settings(max_examples=60, deadline=None)
@given(state=st.dictionaries(names, tensors, max_size=6))
def test_any_header_that_is_written_is_read_back(tmp_path_factory, state):
    path = write_safetensors(tmp_path_factory.getbasetemp() / "round.safetensors", state)
    found, faults = read_header(path)
    assert not faults
    assert {name: (one.shape, one.dtype) for name, one in found.items()} == {
        name: (tuple(one.shape), DTYPE_NAMES[one.dtype]) for name, one in state.items()
    }
    assert load_bytes(path.read_bytes()).keys() == found.keys()


def read_or_refuse(path):
    """Read a header; arbitrary bytes may be refused, but nothing else may be raised."""
    try:
        return read_header(path)
    except FileFaultError as fault:
        return {}, [str(fault)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F4"]) | json_values,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 99), max_size=3) | json_values,
    },
)
headers = st.dictionaries(st.text(max_size=3), entries | json_values, max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    header=st.binary(max_size=60)
    | (headers | json_values).map(lambda value: json.dumps(value).encode()),
    data=st.binary(max_size=99),
    length=st.none() | st.integers(0, 2**64 - 1),
)
def test_what_we_accept_safetensors_accepts_too(tmp_path_factory, header, data, length):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    write_raw(path, header, data, length)
    _, faults = read_or_refuse(path)
    if not faults:
        load_bytes(path.read_bytes())


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=400))
def test_arbitrary_bytes_only_ever_give_problems(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors.index.json", FILE):
        (folder / name).write_bytes(content)
    problems = Problems()
    assert open_checkpoint(ModelSource("any", folder, None, None, None), problems) is None
    assert problems.found
