"""mergekit's configurations, run unchanged by mergekit 0.1.5 and by us, tensor by tensor.

Where we differ on purpose, a test says how and why.
"""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from both import assert_alike, small_llamas
from merges import tensors

from mergepipe.pipeline import merge, prepare


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return small_llamas(tmp_path_factory.mktemp("models"), layers=4, hidden=16, vocab=40)


def written(folder, models, text):
    """Write a configuration in which `$a` stands for the folder of model a."""
    for label, path in sorted(models.items(), reverse=True):
        text = text.replace(f"${label}", str(path))
    (folder / "theirs.yml").write_text(text)
    return folder / "theirs.yml"


def by_mergekit(file):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    run_merge(config, str(file.parent / "theirs"), options)
    return file.parent / "theirs"


def by_us(file):
    merge(prepare(file, out=file.parent / "ours"))
    return file.parent / "ours"


def both(folder, models, text):
    file = written(folder, models, text)
    return by_us(file), by_mergekit(file)


CONFIGURATIONS = {
    "linear": """
        models:
          - {model: $a, parameters: {weight: 1.0}}
          - {model: $b, parameters: {weight: 0.3}}
          - {model: $c, parameters: {weight: 0.5}}
        merge_method: linear
        dtype: float32
    """,
    "linear with the base among the models": """
        models:
          - {model: $base, parameters: {weight: 0.2}}
          - {model: $b, parameters: {weight: 0.3}}
        base_model: $base
        merge_method: linear
        parameters: {normalize: false}
        dtype: float32
    """,
    "linear averages a base in that has a weight": """
        models: [{model: $a}, {model: $b}]
        base_model: $base
        merge_method: linear
        parameters: {weight: [0.2, 0.8]}
        dtype: float32
    """,
    "ties": """
        models:
          - {model: $a, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
          - {model: $b, parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}}
          - model: $c
            parameters:
              density: 0.33
              weight:
                - {filter: mlp, value: 0.5}
                - {value: 0}
        merge_method: ties
        base_model: $base
        parameters: {normalize: true, int8_mask: true}
        dtype: float32
    """,
    "ties, rescaled, its base listed": """
        models:
          - {model: $base}
          - {model: $a, parameters: {density: 0.4, weight: 0.6}}
          - {model: $b, parameters: {density: 0.4, weight: 0.4}}
        merge_method: ties
        base_model: $base
        parameters: {rescale: true, normalize: false, lambda: 0.8}
        dtype: float32
    """,
    "gradient slerp": """
        slices:
          - sources:
              - {model: $base, layer_range: [0, 4]}
              - {model: $a, layer_range: [0, 4]}
        merge_method: slerp
        base_model: $base
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - value: 0.5
        dtype: float32
    """,
    "slerp over models, a gradient that reaches the head": """
        models: [{model: $base}, {model: $a}]
        merge_method: slerp
        base_model: $base
        parameters: {t: [0.1, 0.9]}
        dtype: float32
    """,
    "a frankenmerge": """
        slices:
          - sources: [{model: $a, layer_range: [0, 3]}]
          - sources: [{model: $b, layer_range: [1, 4]}]
        merge_method: passthrough
        dtype: float32
    """,
    "a frankenmerge with scaled projections": """
        slices:
          - sources: [{model: $a, layer_range: [0, 2]}]
          - sources:
              - model: $a
                layer_range: [1, 3]
                parameters:
                  scale:
                    - {filter: o_proj, value: 0.0}
                    - {filter: down_proj, value: 0.0}
                    - value: 1.0
          - sources: [{model: $b, layer_range: [2, 4]}]
        merge_method: passthrough
        dtype: float32
    """,
    "slices that are merged, with gradients of their own": """
        slices:
          - sources:
              - {model: $base, layer_range: [0, 2]}
              - {model: $a, layer_range: [1, 3], parameters: {weight: 0.4}}
              - {model: $b, layer_range: [2, 4], parameters: {weight: [0.1, 0.9]}}
          - sources:
              - {model: $base, layer_range: [1, 2]}
              - {model: $a, layer_range: [3, 4], parameters: {weight: [0.2, 0.8]}}
              - {model: $b, layer_range: [0, 1], parameters: {weight: 0.5}}
            parameters: {lambda: 0.5}
        merge_method: task_arithmetic
        base_model: $base
        dtype: float32
    """,
    "filters that name layers of the inputs": """
        slices:
          - sources:
              - {model: $base, layer_range: [0, 2]}
              - model: $a
                layer_range: [2, 4]
                parameters:
                  weight: [{filter: layers.3., value: 0.9}, {value: 0.1}]
        merge_method: task_arithmetic
        base_model: $base
        dtype: float32
    """,
    "precedence: source, slice, whole": """
        slices:
          - sources:
              - {model: $base, layer_range: [0, 2]}
              - model: $a
                layer_range: [0, 2]
                parameters: {weight: [{filter: mlp, value: 0.7}]}
            parameters: {weight: [{filter: self_attn, value: 0.2}]}
          - sources:
              - {model: $base, layer_range: [2, 4]}
              - {model: $a, layer_range: [2, 4]}
        merge_method: task_arithmetic
        base_model: $base
        parameters: {weight: 0.5}
        dtype: float32
    """,
    "one condition that is no list, numbers as text": """
        models:
          - model: $a
            parameters: {weight: {value: 0.3}}
          - model: $b
            parameters: {weight: "5e-1"}
        merge_method: task_arithmetic
        base_model: $base
        parameters: {lambda: 1e-1, normalize: true}
        dtype: float32
    """,
    "breadcrumbs": """
        models:
          - {model: $a, parameters: {weight: 0.5, density: 0.9, gamma: 0.05}}
          - {model: $b, parameters: {weight: 0.5, density: 0.6}}
        merge_method: breadcrumbs_ties
        base_model: $base
        parameters: {rescale: true}
        dtype: float32
    """,
    "model stock": """
        models: [{model: $a}, {model: $b}, {model: $c}]
        merge_method: model_stock
        base_model: $base
        dtype: float32
    """,
    "sce": """
        models: [{model: $base}, {model: $a}, {model: $b}]
        merge_method: sce
        base_model: $base
        parameters: {select_topk: 0.3}
        dtype: float32
    """,
    "nuslerp": """
        models:
          - {model: $a, parameters: {weight: [{filter: self_attn, value: 0.75}, {value: 0.25}]}}
          - {model: $b, parameters: {weight: 0.6}}
        merge_method: nuslerp
        base_model: $base
        dtype: float32
    """,
    "karcher averages the base in": """
        models: [{model: $a}, {model: $b}]
        base_model: $base
        merge_method: karcher
        dtype: float32
    """,
    "nearswap": """
        models: [{model: $base}, {model: $a}]
        base_model: $base
        merge_method: nearswap
        parameters: {t: 0.02}
        dtype: float32
    """,
    "ramplus": """
        models: [{model: $a}, {model: $b}]
        base_model: $base
        merge_method: ramplus_tl
        parameters: {epsilon: 1e-4, r: 0.3}
        dtype: float32
    """,
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_gives_what_mergekit_gives(models, tmp_path, name):
    ours, theirs = both(tmp_path, models, CONFIGURATIONS[name])
    assert_alike(tensors(ours), tensors(theirs), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize(
    "name", [name for name in CONFIGURATIONS if "slices" in name or "franken" in name]
)
def test_the_configuration_of_the_result_has_its_layers(models, tmp_path, name):
    ours, theirs = both(tmp_path, models, CONFIGURATIONS[name])
    ours, theirs = (json.loads((x / "config.json").read_text()) for x in (ours, theirs))
    assert ours["num_hidden_layers"] == theirs["num_hidden_layers"]


def test_a_frankenmerge_loads_and_answers(models, tmp_path):
    from transformers import AutoModelForCausalLM

    file = written(tmp_path, models, CONFIGURATIONS["a frankenmerge"])
    model = AutoModelForCausalLM.from_pretrained(by_us(file))
    assert model.config.num_hidden_layers == 6
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
