"""Models of several modules (`modules:`), by mergekit 0.1.5 and by us, tensor by tensor."""

from __future__ import annotations

import importlib.resources
import json

import pytest
import torch
from both import assert_alike
from merges import tensors
from test_mergekit_dialect import both, by_us, written

from mergepipe.dialect.modules import divided, main_part
from mergepipe.recipe import matches


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    size = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4}
    for seed, label in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        config = T5Config(
            num_layers=2, num_decoder_layers=3, feed_forward_proj="gated-gelu", **size
        )
        T5ForConditionalGeneration(config).save_pretrained(folder / label)
    return {label: folder / label for label in ("base", "a", "b")}


@pytest.fixture(scope="module")
def seers(tmp_path_factory):
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("qwen")
    size = {"hidden_size": 16, "intermediate_size": 32}
    rope = {"mrope_section": [1, 1, 0], "rope_type": "default", "rope_theta": 10000.0}
    text = {
        **size,
        "vocab_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "rope_scaling": rope,
    }
    vision = {
        **size,
        "depth": 3,
        "num_heads": 4,
        "out_hidden_size": 16,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: 30 + at for at, name in enumerate(tokens)}
    for seed, label in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
        Qwen3VLForConditionalGeneration(config).save_pretrained(folder / label)
    return {label: folder / label for label in ("base", "a", "b")}


ENCODERS = {
    "the same models, each module with parameters of its own": """
        modules:
          encoder:
            models:
              - {model: $a, parameters: {weight: [0.1, 0.9]}}
              - {model: $b, parameters: {weight: 0.5}}
            parameters: {lambda: 0.5}
          decoder:
            models:
              - {model: $a, parameters: {weight: 0.2}}
              - {model: $b, parameters: {weight: [{filter: SelfAttention, value: 1}, {value: 0.3}]}}
          shared:
            models: [{model: $a}, {model: $b}]
            parameters: {weight: 0.7}
        merge_method: task_arithmetic
        base_model: $base
        parameters: {lambda: 0.9}
        dtype: float32
    """,
    "modules of other models": """
        modules:
          encoder:
            models: [{model: $base}, {model: $a}]
            parameters: {t: 0.3}
          decoder:
            models: [{model: $base}, {model: $b}]
            parameters: {t: [0.1, 0.8]}
          shared:
            models: [{model: $base}, {model: $a}]
            parameters: {t: 0.5}
        merge_method: slerp
        base_model: $base
        dtype: float32
    """,
    "modules that are copied": """
        modules:
          encoder: {models: [{model: $a}]}
          decoder: {slices: [{sources: [{model: $b, layer_range: [0, 3]}]}]}
          shared: {models: [{model: $base}]}
        merge_method: passthrough
        dtype: float32
    """,
}
SEERS = {
    "a language model of more layers": """
        modules:
          text_decoder:
            slices:
              - sources: [{model: $a, layer_range: [0, 3]}]
              - sources: [{model: $b, layer_range: [1, 4]}]
          vision_tower: {models: [{model: $b}]}
          multi_modal_projector: {models: [{model: $a}]}
        merge_method: passthrough
        dtype: float32
    """,
    "the same models, the projector in another way": """
        modules:
          text_decoder:
            models:
              - {model: $a, parameters: {weight: [0.1, 0.9]}}
              - {model: $b, parameters: {weight: 1}}
          vision_tower:
            models: [{model: $a, parameters: {weight: 0.9}}, {model: $b, parameters: {weight: 0.1}}]
          multi_modal_projector:
            models: [{model: $a, parameters: {weight: 1}}, {model: $b, parameters: {weight: 0}}]
        merge_method: linear
        dtype: float32
    """,
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_and_a_decoder_are_merged_as_by_mergekit(encoders, tmp_path, name):
    ours, theirs = both(tmp_path, encoders, ENCODERS[name])
    assert_alike(tensors(ours), tensors(theirs), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", SEERS)
def test_a_model_that_sees_is_merged_as_by_mergekit(seers, tmp_path, name):
    ours, theirs = both(tmp_path, seers, SEERS[name])
    assert_alike(tensors(ours), tensors(theirs), rtol=2e-6, atol=2e-7)


def test_a_model_that_sees_has_the_layers_of_its_slices_and_loads(seers, tmp_path):
    from transformers import AutoModelForImageTextToText

    file = written(tmp_path, seers, SEERS["a language model of more layers"])
    model = AutoModelForImageTextToText.from_pretrained(by_us(file))
    assert model.config.text_config.num_hidden_layers == 6


def test_a_part_that_is_not_named_is_the_bases_where_mergekit_leaves_it_out(seers, tmp_path):
    text = """
        modules:
          text_decoder:
            models: [{model: $a, parameters: {weight: 1}}]
        merge_method: task_arithmetic
        base_model: $base
        dtype: float32
    """
    ours, theirs = both(tmp_path, seers, text)
    ours, theirs, base = tensors(ours), tensors(theirs), tensors(seers["base"])
    assert_alike({name: ours[name] for name in theirs}, theirs, rtol=2e-6, atol=2e-7)
    rest = [name for name in ours if name not in theirs]
    assert rest == [name for name in base if ".visual." in name]
    assert all(torch.equal(ours[name], base[name]) for name in rest)


def _definitions():
    folder = importlib.resources.files("mergekit") / "_data" / "architectures"
    found = [json.loads(one.read_text()) for one in folder.iterdir() if one.name.endswith(".json")]
    return {one["architectures"][0]: one["modules"] for one in found if "modules" in one}


def _weights(module):
    definition, prefix = module["architecture"], module.get("weight_prefix") or ""
    layered = definition["layer_templates"]["weights"]
    listed = [*definition["pre_weights"], *layered, *definition["post_weights"]]
    return [prefix + one["name"].replace("${layer_index}", "0") for one in listed]


@pytest.mark.parametrize("architecture", _definitions())
def test_every_tensor_is_in_the_module_that_mergekit_finds_it_in(architecture):
    modules = _definitions()[architecture]
    if architecture == "WhisperForConditionalGeneration":
        modules["decoder"]["weight_prefix"] = "model.decoder."  # mergekit's lacks the dot
    assert len(modules) > 1
    parts = divided(modules)
    for module, definition in modules.items():
        for name in _weights(definition):
            found = next((part for part, globs in parts if matches(globs, name)), None)
            assert (found or main_part(modules)) == module, name
