"""Checkpoints as other tools write them, read back bit for bit from headers and byte ranges."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from checkpoints import (
    edit_json,
    header_of,
    llama,
    llama_config,
    llama_shapes,
    random_tensors,
    write_json,
    write_safetensors,
)
from faulty import local, open_timed
from hypothesis import given
from hypothesis import strategies as st
from material import rxnfp
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mergepipe.checkpoint import (
    DTYPES,
    Stored,
    embedding_name,
    family,
    layer_of,
    read_range,
    read_values,
    torch_dtype,
)
from mergepipe.checkpoint.header import read_header
from mergepipe.errors import EnvironmentFault, InputError

FILE = "model.safetensors"
BIN = "pytorch_model.bin"
TENSORS = random_tensors(llama_shapes())


def opened(folder):
    checkpoint, problems = open_timed(local(folder))
    assert checkpoint is not None, problems
    assert not problems.warnings
    return checkpoint


def whole(stored):
    return read_range(stored, 0, stored.numel).reshape(stored.shape)


def assert_same(checkpoint, expected):
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(whole(checkpoint.tensors[name]), tensor)


def pickled(folder, state, **options):
    """A tiny Llama folder whose weights are the pickle of `state`."""
    llama(folder)
    (folder / FILE).unlink()
    torch.save(state, folder / BIN, **options)
    return folder


@pytest.mark.parametrize("shard_size", ["1GB", "100KB"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_saves_is_read_bit_for_bit(tmp_path, shard_size, tied):
    config = LlamaConfig(**llama_config(tied=tied))
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    expected = dict(model.state_dict())
    if tied:
        del expected["lm_head.weight"]
    assert (shard_size == "1GB") == (tmp_path / FILE).exists()
    assert_same(opened(tmp_path), expected)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_our_tiny_llama_loads_in_transformers(tmp_path, shards, dtype):
    folder = llama(tmp_path, dtype=dtype, shards=shards)
    model = LlamaForCausalLM.from_pretrained(folder)
    assert_same(opened(folder), model.state_dict())


def test_tensors_are_in_storage_order_whatever_the_order_of_the_header(tmp_path):
    header = header_of(TENSORS)
    llama(tmp_path)
    write_safetensors(tmp_path / FILE, TENSORS, dict(reversed(header.items())))
    assert list(opened(tmp_path).tensors) == list(TENSORS)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_read_bit_for_bit(tmp_path, legacy):
    state = {name: torch.nn.Parameter(tensor) for name, tensor in TENSORS.items()}
    folder = pickled(tmp_path, state, _use_new_zipfile_serialization=not legacy)
    checkpoint = opened(folder)
    assert_same(checkpoint, TENSORS)
    assert all((stored.memory is None) != legacy for stored in checkpoint.tensors.values())


@pytest.mark.parametrize("legacy", [False, True])
def test_views_in_a_pickle_are_read_right(tmp_path, legacy):
    matrix = torch.randn(64, 64)
    views = {
        "turned": matrix.T,
        "part": matrix[3:9],
        "columns": matrix[:, 2:4],
        "scalar": matrix[0, 0],
    }
    folder = pickled(tmp_path, views, _use_new_zipfile_serialization=not legacy)
    edit_json(folder / "config.json", num_hidden_layers=None)
    assert_same(opened(folder), views)


def test_a_pickle_saved_on_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.serialization.location_tag", lambda _: "cuda:0")
    folder = pickled(tmp_path, TENSORS)
    monkeypatch.undo()
    assert_same(opened(folder), TENSORS)


@pytest.mark.parametrize("legacy", [False, True])
def test_names_that_share_a_storage_are_aliases(tmp_path, legacy):
    state = TENSORS | {"lm_head.weight": TENSORS["model.embed_tokens.weight"]}
    checkpoint = opened(pickled(tmp_path, state, _use_new_zipfile_serialization=not legacy))
    assert checkpoint.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" in checkpoint.tensors


def test_shards_of_pickles_are_read_by_their_index(tmp_path):
    folder = pickled(tmp_path, {})
    (folder / BIN).unlink()
    names = list(TENSORS)
    weight_map = {name: f"pytorch_model-{1 + (at > 9)}.bin" for at, name in enumerate(names)}
    for shard in set(weight_map.values()):
        part = {name: TENSORS[name] for name in names if weight_map[name] == shard}
        torch.save(part, folder / shard)
    write_json(folder / f"{BIN}.index.json", {"weight_map": weight_map})
    assert_same(opened(folder), TENSORS)


def test_safetensors_win_over_pickles(tmp_path):
    torch.save({}, llama(tmp_path) / BIN)
    assert_same(opened(tmp_path), TENSORS)


def test_the_only_safetensors_file_may_have_any_name(tmp_path):
    (llama(tmp_path) / FILE).rename(tmp_path / "weights.fp16.safetensors")
    assert_same(opened(tmp_path), TENSORS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_as_safetensors_reads_it(tmp_path, dtype):
    dtype_of = torch_dtype(dtype)
    tensor = torch.arange(96, dtype=torch.uint8).view(dtype_of)
    if dtype == "BOOL":
        tensor = torch.arange(96) % 3 == 0
    try:
        save_file({"a": tensor}, tmp_path / FILE)
    except (SafetensorError, KeyError):
        pytest.skip(f"this safetensors cannot write {dtype}")
    stored = read_header(tmp_path / FILE)[0]["a"]
    read = read_range(stored, 0, stored.numel)
    assert (stored.dtype, read.dtype, stored.nbytes) == (dtype, dtype_of, 96)
    assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))


def test_an_unknown_dtype_is_an_input_error():
    with pytest.raises(InputError, match="F4"):
        torch_dtype("F4")


@given(st.integers(0, 640), st.integers(0, 640))
def test_any_range_is_the_slice_of_the_flattened_tensor(one, other):
    name = "lm_head.weight"
    stored = SHARED.tensors[name]
    low, high = sorted((one, other))
    assert torch.equal(read_range(stored, low, high), TENSORS[name].reshape(-1)[low:high])
    assert read_values(SHARED, name, low, high).dtype == torch.float32


@pytest.fixture(scope="module", autouse=True)
def _shared(tmp_path_factory):
    global SHARED  # noqa: PLW0603 -- hypothesis forbids function-scoped fixtures
    SHARED = opened(llama(tmp_path_factory.mktemp("shared")))


def test_values_are_exact_in_fp32_and_float64_is_rounded(tmp_path):
    values = torch.tensor([1 / 3, 1e-300, -2.5], dtype=torch.float64)
    llama(tmp_path)
    write_safetensors(tmp_path / FILE, TENSORS | {"x": values})
    assert torch.equal(read_values(opened(tmp_path), "x", 0, 3), values.float())


def test_offsets_beyond_4_gb_are_right(tmp_path):
    start = 5 * 2**30
    with (tmp_path / "big").open("wb") as file:
        file.seek(start)
        file.write(b"\0\0\x80\x3f")  # 1.0
    stored = Stored("a", "F32", (1,), tmp_path / "big", start, start + 4)
    assert read_range(stored, 0, 1).item() == 1


def test_many_threads_read_at_once():
    stored = SHARED.tensors["model.embed_tokens.weight"]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda at: read_range(stored, at, at + 64), range(0, stored.numel, 64)))
    assert torch.equal(torch.cat(got), TENSORS["model.embed_tokens.weight"].reshape(-1))


def test_a_file_cut_after_its_header_was_read_is_named(tmp_path):
    checkpoint = opened(llama(tmp_path))
    stored = checkpoint.tensors["lm_head.weight"]
    os.truncate(stored.file, stored.stop - 1)
    with pytest.raises(InputError, match=r"lm_head\.weight") as caught:
        whole(stored)
    assert str(stored.file) in str(caught.value)


def test_a_file_removed_after_its_header_was_read_is_an_environment_fault(tmp_path):
    checkpoint = opened(llama(tmp_path))
    (tmp_path / FILE).unlink()
    with pytest.raises(EnvironmentFault, match=r"lm_head\.weight.*No such file"):
        whole(checkpoint.tensors["lm_head.weight"])


def test_an_error_of_the_disk_is_an_environment_fault(tmp_path, monkeypatch):
    checkpoint = opened(llama(tmp_path))

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(EnvironmentFault, match="Input/output error"):
        whole(checkpoint.tensors["lm_head.weight"])


def test_short_reads_are_continued(tmp_path, monkeypatch):
    checkpoint = opened(llama(tmp_path))
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: real(fd, [to[0][:1000]], at))
    assert_same(checkpoint, TENSORS)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.experts.7.up_proj.weight", ("model.layers", 3)),
        ("transformer.h.11.attn.c_attn.bias", ("transformer.h", 11)),
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", ("encoder.block", 0)),
        ("0.weight", ("", 0)),
        ("model.norm.weight", None),
        ("model.layers.٣.weight", None),
        ("layers." + "9" * 5000, None),
        ("", None),
    ],
)
def test_the_layer_is_the_first_number_of_a_name(name, layer):
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lm_head.weight", "model.embed_tokens.weight"], "model.embed_tokens.weight"),
        (["transformer.wpe.weight", "transformer.wte.weight"], "transformer.wte.weight"),
        (["bert.embeddings.word_embeddings.weight"], "bert.embeddings.word_embeddings.weight"),
        (["shared.weight", "encoder.embed_tokens.weight"], "encoder.embed_tokens.weight"),
        (["tok_embeddings.weight"], "tok_embeddings.weight"),
        (["conv1.weight", "fc.weight"], None),
    ],
)
def test_the_embedding_is_known_by_name(names, expected):
    tensors = {name: Stored(name, "F32", (4, 2), Path(), 0, 32) for name in names}
    assert embedding_name(tensors) == expected


def test_the_family_of_a_config():
    assert family(llama_config()) == ("llama", "LlamaForCausalLM")
    assert family({"architectures": [], "model_type": 3}) == ("", "")


def test_headers_are_checked_without_loading_torch(tmp_path):
    code = (
        "import sys, pathlib; from mergepipe.errors import Problems; import mergepipe.checkpoint as c;"
        f"source = c.ModelSource('a', pathlib.Path({str(llama(tmp_path))!r}), None, None, None);"
        "assert c.open_checkpoint(source, Problems()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_real_pickles_of_rxnfp_are_read_bit_for_bit():
    for name in ("bert_pretrained", "bert_ft", "bert_ft_10k_25s"):
        folder = rxnfp(name)
        expected = torch.load(folder / BIN, map_location="cpu", weights_only=True)
        assert_same(open_timed(local(folder))[0], expected)
