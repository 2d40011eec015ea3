"""LoRA adapters: held against PEFT's own `merge_and_unload`, and refused where they must be."""

from __future__ import annotations

import shutil

import pytest
import torch
from checkpoints import edit_json, llama, llama_shapes
from faulty import local, open_timed
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mergepipe.checkpoint import read_range, read_values
from mergepipe.checkpoint.scaling import scaling_of

ADAPTER = "adapter_config.json"
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's advice
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def tiny_llama(**fields):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=320,
        **fields,
    )
    return LlamaForCausalLM(config)


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=320, n_positions=64)
    return GPT2LMHeadModel(config)


def trained(tmp_path, model, dtype=torch.float32, **config):
    """Save `model` and an adapter of it with random factors; give PEFT's merged state dict."""
    model.to(dtype).save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(**config))
    draw = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=draw).to(dtype) * 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    return adapted.merge_and_unload().state_dict()


def open_adapted(tmp_path):
    source = local(tmp_path / "base", adapter=tmp_path / "adapter")
    return open_timed(source)


def assert_merged(checkpoint, expected):
    for name, stored in checkpoint.tensors.items():
        values = read_values(checkpoint, name, 0, stored.numel).reshape(stored.shape)
        assert_close(values, expected[name].float(), rtol=1e-6, atol=1e-6)


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA = {
    "plain": {"target_modules": ALL, "r": 4, "lora_alpha": 12},
    "one module": {"target_modules": ["q_proj"]},
    "rsLoRA": {"target_modules": ALL, "r": 4, "use_rslora": True},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3, "^model.layers.0.mlp.*": 5},
        "alpha_pattern": {"v_proj": 1.5, "model.layers.0.self_attn.o_proj": 7},
    },
    "some layers": {"target_modules": ALL, "layers_to_transform": [1]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"], "r": 4},
    "whole head and norm": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head", "down_proj"]},
}
GPT2 = {
    "plain": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "square only": {"target_modules": ["attn.c_proj"], "fan_in_fan_out": True, "r": 4},
    "biases": {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"},
    "lora biases": {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"},
    "positions": {"target_modules": ["wpe", "c_fc"], "fan_in_fan_out": True},
}


@pytest.mark.parametrize("config", LLAMA.values(), ids=LLAMA)
def test_an_adapter_of_a_llama_gives_what_peft_merges(tmp_path, config):
    expected = trained(tmp_path, tiny_llama(), **config)
    checkpoint, problems = open_adapted(tmp_path)
    assert not problems.found
    assert set(checkpoint.tensors) == set(llama_shapes())
    assert_merged(checkpoint, expected)


@pytest.mark.parametrize("config", GPT2.values(), ids=GPT2)
def test_an_adapter_of_a_gpt2_gives_what_peft_merges(tmp_path, config):
    expected = trained(tmp_path, tiny_gpt2(), **config)
    checkpoint, problems = open_adapted(tmp_path)
    assert not problems.found
    assert_merged(checkpoint, expected)


def test_a_whole_embedding_of_a_tied_model_gives_what_peft_merges(tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    config = {"target_modules": ["q_proj"], "ensure_weight_tying": True}
    expected = trained(tmp_path, model, modules_to_save=["embed_tokens"], **config)
    checkpoint, _ = open_adapted(tmp_path)
    assert_merged(checkpoint, expected)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "head is tied"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, "head is tied"),
        ({"target_modules": ["lm_head"]}, "no tensor 'lm_head.weight'"),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "'lm_head.weight'"),
    ],
)
def test_what_would_untie_a_tied_model_is_refused(tmp_path, config, words):
    model = tiny_llama(tie_word_embeddings=True)
    trained(tmp_path, model, **{"target_modules": ["q_proj"], **config})
    _, problems = open_adapted(tmp_path)
    assert words in str(problems.found)


def test_an_embedding_adapter_of_a_tied_model_gives_what_peft_merges(tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    expected = trained(tmp_path, model, target_modules=["embed_tokens"])
    checkpoint, _ = open_adapted(tmp_path)
    assert "lm_head.weight" not in checkpoint.tensors
    assert_merged(checkpoint, expected)


@pytest.fixture(scope="module")
def adapted_once(tmp_path_factory):
    """A Llama with an adapter of all its projections and its embedding."""
    folder = tmp_path_factory.mktemp("adapted")
    targets = [*ALL, "embed_tokens"]
    return folder, trained(folder, tiny_llama(), target_modules=targets, r=4)


@pytest.fixture
def adapted(adapted_once, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(adapted_once[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", Q_PROJ])
@pytest.mark.parametrize("step", [1, 37, 64, 1000, 64 * 128, 10**6])
def test_values_do_not_depend_on_how_they_are_cut(adapted_once, name, step):
    checkpoint, _ = open_adapted(adapted_once[0])
    count = checkpoint.tensors[name].numel
    whole = read_values(checkpoint, name, 0, count)
    starts = range(0, min(count, 40 * step), step)
    pieces = [read_values(checkpoint, name, at, min(at + step, count)) for at in starts]
    got = torch.cat(pieces)
    assert torch.equal(got, whole[: len(got)])


def test_an_adapter_of_a_bfloat16_model_is_added_in_full_precision(tmp_path):
    trained(tmp_path, tiny_llama(), torch.bfloat16, target_modules=["q_proj"], r=4)
    checkpoint, _ = open_adapted(tmp_path)
    low = checkpoint.low_rank[Q_PROJ]
    a, b = (read_range(one, 0, one.numel).double().reshape(one.shape) for one in (low.a, low.b))
    stored = checkpoint.tensors[Q_PROJ]
    weight = read_range(stored, 0, stored.numel).double().reshape(stored.shape)
    values = read_values(checkpoint, Q_PROJ, 0, stored.numel)
    assert_close(values, (weight + low.scale * (b @ a)).float().reshape(-1), rtol=0, atol=0)


def test_tensors_without_an_update_are_exactly_the_base_s(adapted_once):
    checkpoint, _ = open_adapted(adapted_once[0])
    stored = checkpoint.tensors["model.norm.weight"]
    assert "model.norm.weight" not in checkpoint.low_rank
    assert stored.file == adapted_once[0] / "base" / "model.safetensors"


def rename_adapter(folder, rename):
    """Write the adapter's weights again under the names that `rename` gives."""
    file = folder / "adapter" / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("lora_A.weight", "lora_A.default.weight"),
        lambda name: name.removeprefix("base_model.model."),
    ],
)
def test_names_of_older_versions_are_understood(adapted, adapted_once, rename):
    rename_adapter(adapted, rename)
    checkpoint, _ = open_adapted(adapted)
    assert_merged(checkpoint, adapted_once[1])


def test_a_pickled_adapter_is_understood(adapted, adapted_once):
    file = adapted / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    checkpoint, _ = open_adapted(adapted)
    assert_merged(checkpoint, adapted_once[1])


def config(**fields):
    return lambda folder: edit_json(folder / "adapter" / ADAPTER, **fields)


def of_other_size(**fields):
    """Harm: the base is another Llama."""
    return lambda folder: llama(folder / "base", dtype="F32", **fields)


UNFIT = {
    "DoRA": (config(use_dora=True), "use_dora"),
    "biases of LoRA": (config(lora_bias=True), "lora_bias"),
    "prompt tuning": (config(peft_type="PROMPT_TUNING"), "PROMPT_TUNING"),
    "no type": (config(peft_type=None), "peft_type"),
    "layer replication": (config(layer_replication=[[0, 2]]), "layer_replication"),
    "trainable tokens": (config(trainable_token_indices=[1]), "trainable_token_indices"),
    "target parameters": (config(target_parameters=["experts"]), "target_parameters"),
    "a field of the future": (config(use_zora=True), "use_zora"),
    "PiSSA": (config(init_lora_weights="pissa"), "pissa"),
    "another rank": (config(r=8), "rank 8"),
    "rank 0": (config(r=0), "r is 0"),
    "rank as text": (config(r="4"), "r is '4'"),
    "alpha is NaN": (config(lora_alpha=float("nan")), "lora_alpha"),
    "pattern is no pattern": (config(rank_pattern={"(": 4}), "rank_pattern '('"),
    "pattern takes for ever": (config(alpha_pattern={"(a+)+": 4}), "alpha_pattern"),
    "patterns are a list": (config(rank_pattern=[1]), "rank_pattern"),
    "pattern of text": (config(rank_pattern={"q_proj": "4"}), "rank_pattern 'q_proj'"),
    "config is a list": (lambda f: (f / "adapter" / ADAPTER).write_text("[]"), "JSON object"),
    "config is not JSON": (lambda f: (f / "adapter" / ADAPTER).write_text("{"), "JSON"),
    "no config": (lambda f: (f / "adapter" / ADAPTER).unlink(), "does not exist"),
    "no weights": (lambda f: (f / "adapter/adapter_model.safetensors").unlink(), "does not exist"),
    "no folder": (lambda f: shutil.rmtree(f / "adapter"), "does not exist"),
    "base of other width": (of_other_size(hidden=96), "do not fit"),
    "base of one layer": (of_other_size(layers=1), "model.layers.1.mlp.down_proj"),
    "base of other names": (lambda f: rename_adapter(f, lambda name: "x." + name), "no tensor"),
    "half of a pair": (
        lambda f: rename_adapter(f, lambda name: name.replace("0.self_attn.q_proj.lora_A", "x")),
        "only one of",
    ),
    "a variant of LoRA": (
        lambda f: rename_adapter(f, lambda name: name.replace("lora_B.weight", "lora_B.bias")),
        "variant",
    ),
    "orientation in doubt": (config(fan_in_fan_out=True), "fan_in_fan_out is true"),
}


@pytest.mark.parametrize(("harm", "words"), UNFIT.values(), ids=UNFIT)
def test_an_adapter_that_cannot_be_applied_is_refused(adapted, harm, words):
    harm(adapted)
    checkpoint, problems = open_adapted(adapted)
    assert checkpoint is None
    assert words in "\n".join(map(str, problems.found))
    assert "adapter" in str(problems.found[0])


def test_an_adapter_that_runs_code_is_refused(adapted):
    (adapted / "adapter/adapter_model.safetensors").unlink()
    (adapted / "adapter/adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    _, problems = open_adapted(adapted)
    assert "unsafe" in str(problems.found[0])


def test_scales_are_those_of_the_papers():
    plain = {"r": 16, "lora_alpha": 32}
    assert scaling_of(plain)[0].scale_of("q_proj") == 2
    assert scaling_of({**plain, "use_rslora": True})[0].scale_of("q_proj") == 8


def test_a_tied_pickle_gets_the_update_under_both_names(tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    expected = trained(tmp_path, model, target_modules=["embed_tokens"])
    weights = load_file(tmp_path / "base/model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    torch.save(weights, tmp_path / "base/pytorch_model.bin")
    (tmp_path / "base/model.safetensors").unlink()
    checkpoint, _ = open_adapted(tmp_path)
    assert checkpoint.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert_merged(checkpoint, expected)
