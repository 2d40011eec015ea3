"""What mergekit 0.1.5 does that nobody asked for, from the same configurations here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from checkpoints import edit_json, llama, write_safetensors
from families import FAMILIES
from merges import FILE, NORM, digests, tensors
from worded import ids_of, worded

from mergepipe.errors import InputError
from mergepipe.pipeline import merge, prepare

EXTRA = "model.layers.0.self_attn.rotary_scale"


@pytest.fixture
def folder(tmp_path):
    for seed, label in enumerate(("base", "a", "b", "c")):
        llama(tmp_path / label, seed=seed, hidden=16, vocab=40)
    return tmp_path


def write(folder, method="linear", models=("a", "b"), **fields):
    config = {
        "models": [{"model": x, "parameters": {"weight": 0.5, "density": 0.5}} for x in models],
        "merge_method": method,
        **fields,
    }
    (folder / "theirs.yml").write_text(yaml.safe_dump(config))
    return folder / "theirs.yml"


def merged(folder, *arguments, out="out", **fields):
    merge(prepare(write(folder, *arguments, **fields), out=folder / out))
    return folder / out


def test_bytes_do_not_depend_on_the_hashes_of_words(folder):
    """mergekit takes configuration, tokenizer and order of words from a set of models."""
    for seed, name in enumerate("abc"):
        worded(folder / name, (f"<{name}>", "<both>"), seed=seed)
    file = write(folder, models=("c", "a", "b"), tokenizer_source="union")
    for seed in ("0", "1", "2"):
        subprocess.run(
            [sys.executable, "-m", "mergepipe", "run", str(file), "--out", str(folder / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
    assert digests(folder / "0") == digests(folder / "1") == digests(folder / "2")
    config = json.loads((folder / "0" / "config.json").read_text())
    assert config == json.loads((folder / "c" / "config.json").read_text()) | {"vocab_size": 68}
    assert list(ids_of(folder / "0"))[64:] == ["<c>", "<both>", "<a>", "<b>"]


@pytest.mark.parametrize("method", ["dare_ties", "della", "arcee_fusion"])
def test_a_method_that_draws_gives_the_same_twice(folder, method):
    """mergekit draws without a seed."""
    models = ("a",) if method == "arcee_fusion" else ("a", "b")
    one, other = (
        merged(folder, method, models, base_model="base", out=out) for out in ("one", "other")
    )
    assert digests(one) == digests(other)


def test_weights_that_have_scales_are_not_averaged(folder):
    """mergekit casts FP8 codes without their scales, which gives noise."""
    for label in ("a", "b"):
        found = tensors(folder / label)
        name = "model.layers.0.mlp.up_proj.weight"
        found[name] = found[name].to(torch.float8_e4m3fn)
        found[f"{name}_scale_inv"] = torch.ones(1)
        write_safetensors(folder / label / FILE, found)
    with pytest.raises(InputError, match="quantized"):
        merged(folder)


def test_tensors_that_no_definition_of_the_architecture_names_are_merged(folder):
    """mergekit drops them without a message."""
    for value, label in ((1.0, "a"), (3.0, "b")):
        found = tensors(folder / label)
        write_safetensors(folder / label / FILE, {**found, EXTRA: torch.full((4,), value)})
    assert tensors(merged(folder))[EXTRA].tolist() == [2.0] * 4


def test_a_frankenmerge_of_an_unknown_architecture_says_its_layers(folder):
    """mergekit writes the old number where it infers an architecture."""
    for label in ("a", "b"):
        name = {"architectures": ["NovelForCausalLM"], "model_type": "novel"}
        edit_json(folder / label / "config.json", **name)
    config = {
        "slices": [{"sources": [{"model": x, "layer_range": [0, 2]}]} for x in ("a", "b")],
        "merge_method": "passthrough",
    }
    (folder / "theirs.yml").write_text(yaml.safe_dump(config))
    merge(prepare(folder / "theirs.yml", out=folder / "out"))
    assert json.loads((folder / "out" / "config.json").read_text())["num_hidden_layers"] == 4


def test_encoders_are_merged(tmp_path):
    """mergekit ends with a TypeError at BERT's optional weights."""
    bert = next(one for one in FAMILIES if one.model == "BertForMaskedLM")
    for seed, label in enumerate(("a", "b")):
        bert.build(seed).save_pretrained(tmp_path / label)
    out = merged(tmp_path)
    a, b = (tensors(tmp_path / label) for label in ("a", "b"))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(tensors(out)[name], (a[name] + b[name]) / 2)
    assert not bert.load(out)[1]["missing_keys"]


def test_what_was_in_the_output_folder_before_is_gone(folder):
    """mergekit leaves shards and indexes of an earlier, larger merge beside the new ones."""
    out = merged(folder)
    (out / "model-00001-of-00002.safetensors").write_bytes(b"old")
    (out / "model.safetensors.index.json").write_text("{}")
    merge(prepare(write(folder), out=out), overwrite=True)
    written = sorted(one.name for one in out.iterdir())
    assert written == ["config.json", "mergepipe.json", "model.safetensors", "run.json"]


def test_a_folder_named_like_a_model_on_the_hub_needs_no_network(folder, monkeypatch):
    """mergekit asks the hub for `models/a` when the weights are written, and ends there."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "models").mkdir()
    for label in ("a", "b"):
        (folder / label).rename(folder / "models" / label)
    assert NORM in tensors(merged(folder, "linear", ("models/a", "models/b")))


def test_stages_are_made_again_when_their_document_changes(folder):
    """mergekit-multi takes whatever lies in its folder for the stage's result."""
    found = []
    for weight in (0.5, 0.9):
        stage = {
            "name": "first",
            "models": [
                {"model": x, "parameters": {"weight": w}} for x, w in (("a", 1), ("b", weight))
            ],
            "merge_method": "linear",
            "parameters": {"normalize": False},
        }
        last = {
            "models": [{"model": "first", "parameters": {"weight": 1}}],
            "merge_method": "linear",
        }
        (folder / "theirs.yml").write_text(yaml.safe_dump_all([stage, last]))
        merge(prepare(folder / "theirs.yml", out=folder / "out"), overwrite=True)
        found.append(tensors(folder / "out")[NORM])
    assert not torch.equal(*found)
