"""Configs that contradict the weights, and folders that hold no mergeable model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from checkpoints import (
    edit_json,
    llama,
    llama_config,
    llama_shapes,
    random_tensors,
    write_json,
    write_safetensors,
)
from faulty import Row, assert_clean, local, open_timed, refused, rows, survived
from transformers import AutoConfig, AutoModel

from mergepipe.checkpoint import ModelSource, Stored, open_checkpoint
from mergepipe.checkpoint.config import check_config
from mergepipe.checkpoint.files import Place
from mergepipe.errors import Problems

CONFIG = "config.json"
FILE = "model.safetensors"
BAD = ("expert_bad", CONFIG)
TENSORS = random_tensors(llama_shapes())
CANARY = "canary"


def field(**fields):
    return lambda folder: edit_json(folder / CONFIG, **fields)


def text(content):
    return lambda folder: (folder / CONFIG).write_text(content, encoding="utf-8")


def only(*files):
    """Harm: a folder of just these files, all of them empty JSON objects."""

    def harm(folder):
        for path in folder.iterdir():
            path.unlink()
        for name in files:
            (folder / name).write_text("{}")

    return harm


def also(config=None, **tensors):
    """Harm: other tensors beside, or in place of, the healthy ones, and config fields."""

    def harm(folder):
        named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        write_safetensors(folder / FILE, TENSORS | named)
        edit_json(folder / CONFIG, **(config or {}))

    return harm


def gptq(folder):
    also(
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        model__layers__0__mlp__up_proj__qweight=torch.zeros(8, 64, dtype=torch.int32),
    )(folder)


def custom_code(folder):
    """An auto_map to code that would leave a file behind."""
    edit_json(folder / CONFIG, auto_map={"AutoConfig": "evil.Config"}, model_type="evil")
    (folder / "evil.py").write_text(f"open({CANARY!r}, 'w')")


REFUSED = rows(
    Row("an adapter as a full model", only("adapter_config.json", "adapter_model.safetensors"), ("expert_bad",), ("peft",)),
    Row("nested 100000 levels", text("[" * 100_000), BAD, ("nest",)),
    Row("torch_dtype float17", field(torch_dtype="float17"), (*BAD, "float17")),
    Row("dtype of integers", field(dtype="int8"), (*BAD, "int8")),
    Row("empty object", text("{}"), BAD, ("model_type", "architectures")),
    Row("an array", text("[]"), BAD, ("object",)),
    Row("only a gguf", only("model.gguf", CONFIG), ("expert_bad", "gguf")),
    Row("hidden_size 128, tensors 64", field(hidden_size=128), (*BAD, "hidden_size", "128", "64")),
    Row("10**9 layers", field(num_hidden_layers=10**9), (*BAD, "num_hidden_layers")),
    Row("1 layer said, 2 stored", field(num_hidden_layers=1), (*BAD, "num_hidden_layers", "1", "2")),
    Row("3 layers said, 2 stored", field(num_hidden_layers=3), (*BAD, "num_hidden_layers", "3", "layers.2")),
    Row("trailing comma and comment", text('{"a": 1, // no\n}'), BAD, ("json", "line")),
    Row("no config.json", lambda f: (f / CONFIG).unlink(), BAD, ("does not exist",)),
    Row("NaN", field(rms_norm_eps=float("nan")), (*BAD, "rms_norm_eps")),
    Row("NaN deep inside", field(rope={"factors": [1.0, float("nan")]}), (*BAD, "rope.factors[1]")),
    Row("-2 layers", field(num_hidden_layers=-2), (*BAD, "num_hidden_layers", "-2")),
    Row("no weight files", only(CONFIG, "tokenizer.json"), ("expert_bad",), ("safetensors", "weights")),
    Row("several files, no index", only(CONFIG, "a.safetensors", "b.safetensors"), ("expert_bad", "a.safetensors")),
    Row("GPTQ", gptq, ("expert_bad",), ("quantized",)),
    Row("packed weights unsaid", also(a__qweight=torch.zeros(8, dtype=torch.int32)), ("expert_bad",), ("quantized",)),
    Row("scaled fp8", also(**{"a.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.ones(1)}), ("expert_bad",), ("quantized",)),
    Row("hidden_size is text", field(hidden_size="64"), (*BAD, "hidden_size")),
    Row("vocab_size 333, 320 rows", field(vocab_size=333), (*BAD, "vocab_size", "333", "320")),
    Row("lm_head of 352 rows", also(lm_head__weight=torch.zeros(352, 64)), ("expert_bad", "lm_head.weight", "352", "320")),
    Row("nested text_config contradicts", field(text_config={"hidden_size": 128}), (*BAD, "hidden_size", "128")),
    Row("a key twice", text('{"model_type": "a", "model_type": "b"}'), BAD, ("duplicate",)),
    Row("config.json is a pipe", lambda f: ((f / CONFIG).unlink(), os.mkfifo(f / CONFIG)), BAD, ("regular file",)),
    Row("config.json is not UTF-8", lambda f: (f / CONFIG).write_bytes(b'{"a": "\xe4"}'), BAD, ("utf",)),
)  # fmt: skip
SURVIVED = rows(
    Row("healthy", lambda _: None),
    Row("a script tag in _name_or_path", field(_name_or_path="<script>alert(1)</script>")),
    Row("a token-like string", field(_name_or_path="hf_" + "a" * 30)),
    Row("auto_map", custom_code, warns=("custom code", "trust_remote_code")),
    Row("infinity, as Mamba 2 says", field(time_step_limit=[0.0, float("inf")])),
    Row("torch. before the dtype", field(torch_dtype="torch.bfloat16")),
    Row("unknown fields and architecture", text('{"architectures": ["FrobnicateForCausalLM"]}')),
    Row("multi-token prediction", field(num_hidden_layers=1, num_nextn_predict_layers=1)),
    Row("shared layers, as in ALBERT", field(num_hidden_layers=12, num_hidden_groups=1)),
    Row("factorised embedding", field(hidden_size=128, embedding_size=64)),
    Row("more rows than tokens, as in Mllama", also({"vocab_size": 312}, **{"lm_head.weight": TENSORS["lm_head.weight"][:312]}), warns=("312", "320")),
    Row("convolutions", field(hidden_size=None, num_hidden_layers=64)),
    Row("a size per part", field(num_hidden_layers={"vision": 3})),
    Row("nested text_config wins", field(num_hidden_layers=9, text_config={"num_hidden_layers": 2})),
    Row("fields are null", field(hidden_size=None, num_hidden_layers=None, vocab_size=None)),
    Row("neither model_type nor architectures, as of old", field(model_type=None, architectures=None), warns=("model_type",)),
    Row("an empty adapter_config.json beside", lambda f: write_json(f / "adapter_config.json", {})),
)  # fmt: skip


@pytest.fixture
def expert_bad(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return llama(tmp_path / "expert_bad")


@REFUSED
def test_a_bad_folder_is_refused(row, expert_bad):
    refused(row, expert_bad)


@SURVIVED
def test_an_odd_config_is_survived(row, expert_bad, tmp_path):
    survived(row, expert_bad)
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize(
    "name",
    ["<img src=x onerror=alert(1)>", "```\n[x](javascript:0)", "modèle 模型 \u202e txt", "a" * 255],
)
def test_any_folder_name_is_survived_and_shown_safely(tmp_path, name):
    folder = llama(tmp_path / name)
    survived(Row("healthy", lambda _: None), folder)
    (folder / CONFIG).unlink()
    _, problems = open_timed(local(folder))
    assert_clean(str(problems.found[0]))


def test_a_label_is_shown_beside_another_folder_name(expert_bad):
    (expert_bad / CONFIG).unlink()
    _, problems = open_timed(local(expert_bad, label="math"))
    assert str(problems.found[0]).startswith("math (expert_bad/config.json): does not exist")


def test_faults_of_config_and_weights_are_reported_together(expert_bad):
    text("{")(expert_bad)
    (expert_bad / FILE).write_bytes(b"")
    _, problems = open_timed(local(expert_bad))
    assert [FILE in problems.found[0].where, CONFIG in problems.found[1].where] == [True, True]


def test_a_path_that_does_not_exist_is_said_so(tmp_path):
    _, problems = open_timed(local(tmp_path / "expert_zzz"))
    assert "expert_zzz does not exist" in str(problems.found[0])


def test_a_path_that_is_a_file_is_said_so(expert_bad):
    _, problems = open_timed(local(expert_bad / CONFIG))
    assert "a file, not a directory" in str(problems.found[0])
    assert CONFIG in str(problems.found[0])


@pytest.mark.parametrize("name", ["a\0b", "a/" * 3000, "b" * 300])
def test_an_impossible_path_is_refused(tmp_path, name):
    checkpoint, problems = open_timed(local(tmp_path / name))
    assert checkpoint is None
    assert_clean(str(problems.found[0]))


def test_a_hub_model_that_cannot_be_had_is_first_said_to_be_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    problems = Problems()
    source = ModelSource("math", None, "nobody/nothing", "main", None)
    assert open_checkpoint(source, problems, local_files_only=True) is None
    assert "no local folder 'nobody/nothing' exists" in str(problems.found[0])
    assert "\n" not in str(problems.found[0])


def test_a_config_of_another_size_is_healthy_if_the_weights_agree(tmp_path):
    folder = llama(tmp_path / "wide", layers=3, hidden=96)
    checkpoint = survived(Row("consistent", lambda _: None), folder)
    assert checkpoint.config == llama_config(layers=3, hidden=96)


@pytest.mark.parametrize(
    "model_type",
    [
        "llama",
        "gpt2",
        "bert",
        "t5",
        "albert",
        "whisper",
        "clip",
        "mamba",
        "mixtral",
        "mllama",
        "deepseek_v3",
        "qwen2_vl",
        "electra",
        "opt",
        "xlnet",
        "gemma3",
        "vit",
        "clap",
        "gpt_neox",
    ],
)
def test_the_defaults_of_real_architectures_are_not_refused(model_type):
    config = AutoConfig.for_model(model_type)
    with torch.device("meta"):
        named = AutoModel.from_config(config).state_dict()
    tensors = {
        name: Stored(name, "F32", tuple(value.shape), Path(), 0, 4 * value.numel())
        for name, value in named.items()
    }
    problems = Problems()
    check_config(config.to_dict(), tensors, Place("a", Path(), "a"), problems)
    assert not problems.found
