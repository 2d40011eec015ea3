"""GGUF files: what stands in them, and that a real runtime speaks with them as transformers does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from command_line import command
from material import tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mergepipe.errors import InputError
from mergepipe.gguf import KINDS, digest_in, write_gguf
from mergepipe.gguf.architecture import rope_factors
from mergepipe.pipeline import merge, prepare

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"
# Tokenizers that are split in one of the ways llama.cpp has a name for, or by SentencePiece's rules.
VOCABULARIES = ("llama3", "qwen2_5", "gpt2", "mistral_nemo", "llama2", "smollm2")


def silent(_: str) -> None:
    """Tell nobody."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the quickstart's base."""
    folder = tmp_path_factory.mktemp("gguf") / "base"
    shutil.copytree(QUICKSTART / "base", folder)
    return folder


def converted(folder: Path, kind: str = "f32") -> gguf.GGUFReader:
    file = folder.parent / f"{folder.name}-{kind}.gguf"
    write_gguf(folder, file, kind, "digest", silent)
    assert not list(folder.parent.glob(".*"))
    return gguf.GGUFReader(file)


def values(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    return {one.name: gguf.quants.dequantize(one.data, one.tensor_type) for one in reader.tensors}


def test_values_are_those_of_the_checkpoint(model):
    found = values(converted(model))
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    state = module.state_dict()
    assert len(found) == len(list(module.parameters()))
    for ours, theirs in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.3.attn_v.weight", "model.layers.3.self_attn.v_proj.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
    ):
        assert np.array_equal(found[ours], state[theirs].numpy())


def test_rows_that_rotate_together_stand_beside_each_other(model):
    config = json.loads((model / "config.json").read_text())
    heads, size = config["num_attention_heads"], config["head_dim"]
    query = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    theirs = query["model.layers.0.self_attn.q_proj.weight"].numpy().reshape(heads, size, -1)
    ours = values(converted(model))["blk.0.attn_q.weight"].reshape(heads, size, -1)
    assert np.array_equal(ours[:, 0::2], theirs[:, : size // 2])
    assert np.array_equal(ours[:, 1::2], theirs[:, size // 2 :])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_as_near_as_its_bits_allow(model, kind):
    exact, found = values(converted(model)), values(converted(model, kind))
    errors = {"f32": 0, "f16": 0.001, "bf16": 0, "q8_0": 0.01, "q5_0": 0.08, "q4_0": 0.16}
    for name, rounded in found.items():
        near = np.linalg.norm(rounded - exact[name]) / np.linalg.norm(exact[name])
        assert near <= errors[kind]  # of weights that are stored in bf16
    assert digest_in(model.parent / f"base-{kind}.gguf") == ("digest", kind)


def test_the_frequencies_of_llama_3_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=scaled)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (np.arange(0, 128, 2) / 128)
    ours = rope_factors(config.to_dict())
    assert ours is not None
    np.testing.assert_allclose(plain / ours, theirs.numpy(), rtol=1e-6)


def test_an_architecture_without_a_name_there_is_refused(model, tmp_path):
    shutil.copytree(model, tmp_path / "other")
    config = json.loads((model / "config.json").read_text()) | {
        "architectures": ["GPTBigForCausalLM"]
    }
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="GPTBigForCausalLM cannot be made"):
        write_gguf(tmp_path / "other", tmp_path / "x.gguf", "f16", "", silent)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_tokenizer_that_llama_cpp_would_split_in_another_way_is_refused(model, tmp_path):
    shutil.copytree(model, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    stored = json.loads(file.read_text())
    stored["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "[aeiou]"}
    file.write_text(json.dumps(stored))
    with pytest.raises(InputError, match="no name for how this tokenizer splits texts"):
        write_gguf(tmp_path / "other", tmp_path / "x.gguf", "f16", "", silent)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of two of the quickstart's models."""
    folder = tmp_path_factory.mktemp("merged")
    models = {label: str(QUICKSTART / label) for label in ("base", "german")}
    recipe = {"mergepipe": 1, "models": models, "output": {"path": "merged"}}
    recipe["merge"] = {"method": "linear", "models": ["base", "german"]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return merge(prepare(folder / "recipe.yaml")).folder


def test_what_was_made_of_the_same_checkpoint_is_not_made_again(merged, capsys):
    file = merged.parent / "merged.gguf"
    target = f"gguf:{file}?type=q8_0"
    assert command(capsys, "publish", merged, "--to", target).status == 0
    made = file.stat().st_mtime_ns
    again = command(capsys, "publish", merged, "--to", target)
    assert (again.status, file.stat().st_mtime_ns) == (0, made)
    other = command(capsys, "publish", merged, "--to", f"gguf:{file}?type=f16")
    assert (other.status, file.stat().st_mtime_ns) == (2, made)
    assert "--overwrite" in other.err


def test_what_cannot_be_converted_is_found_before_any_target_is_written(tmp_path, capsys):
    (tmp_path / "models").mkdir()
    shutil.copytree(QUICKSTART / "base", tmp_path / "models" / "base")
    file = tmp_path / "models" / "base" / "tokenizer.json"
    stored = json.loads(file.read_text()) | {"pre_tokenizer": {"type": "Whitespace"}}
    file.write_text(json.dumps(stored))
    recipe = {"mergepipe": 1, "models": {"base": "base"}, "output": {"path": "merged"}}
    recipe["merge"] = {"method": "passthrough", "models": ["base"]}
    (tmp_path / "models" / "recipe.yaml").write_text(json.dumps(recipe))
    made = merge(prepare(tmp_path / "models" / "recipe.yaml"), sync=False).folder
    targets = ("--to", tmp_path / "copy", "--to", f"gguf:{tmp_path}/x.gguf")
    said = command(capsys, "publish", made, *targets)
    assert said.status == 2
    assert "no name for how this tokenizer splits texts" in said.err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["models"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nowhere/x.gguf", "create its folder"),
        ("x.bin", "not the name of a GGUF file"),
        ("x.gguf?type=q9", "one of f32, f16, bf16, q8_0"),
        ("x.gguf?kind=f16", "is not type=KIND"),
    ],
)
def test_an_address_that_cannot_be_is_refused(merged, capsys, address, words):
    said = command(capsys, "publish", merged, "--to", f"gguf:{address}")
    assert said.status == 2
    assert words in said.err


# A real runtime.


@pytest.fixture
def speak():
    """Ask a GGUF file for the ids of a text, and how it goes on."""
    ik_llama_cpp = pytest.importorskip("ik_llama_cpp", reason="make torture installs it")

    def asked(file: Path, text: str, count: int) -> tuple[list[int], list[int]]:
        runtime = ik_llama_cpp.IkLlama(str(file), n_ctx=256, n_threads=1, verbose=False)
        try:
            ids = runtime.tokenize(text, add_bos=False)
            return ids, runtime.generate(ids[:20], max_tokens=count) if count else []
        finally:
            runtime.close()

    return asked


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0"])
def test_a_runtime_speaks_with_it_as_transformers_does(model, speak, kind):
    converted(model, kind)
    tokens = AutoTokenizer.from_pretrained(model)
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    text = "The history of the city begins with a small settlement near the river"
    prompt = tokens(text, add_special_tokens=False, return_tensors="pt").input_ids
    expected = module.generate(prompt[:, :20], max_new_tokens=16, do_sample=False)
    ids, went_on = speak(model.parent / f"base-{kind}.gguf", text, 16)
    assert ids == prompt[0].tolist()
    assert went_on == expected[0, len(prompt[0, :20]) :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_runtime_cuts_texts_as_the_tokenizer_does(name, speak, tmp_path):
    folder = tmp_path / name
    shutil.copytree(tokenizer(name), folder)
    tokens = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokens) + 7,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    converted(folder, "q8_0")
    text = "".join(
        (QUICKSTART / "heldout" / f"{part}.jsonl").read_text(encoding="utf-8")[:3000]
        for part in ("english", "german", "python", "arithmetic")
    )
    ids, _ = speak(tmp_path / f"{name}-q8_0.gguf", text, 0)
    assert ids == tokens(text, add_special_tokens=False).input_ids
