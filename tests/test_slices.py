"""Layers put together: which tensors, of which models, with which parameters."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from checkpoints import llama
from merges import tensors

from mergepipe.checkpoint import with_layers
from mergepipe.errors import InputError
from mergepipe.method import apply
from mergepipe.pipeline import merge, prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("slices")
    llama(made / "a", seed=1, layers=4)
    llama(made / "b", seed=2, layers=6)
    return made


def prepared(folder, fields, out=None):
    recipe = {"mergepipe": 1, "models": {"a": "./a", "b": "./b"}, "merge": fields}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return prepare(folder / "recipe.yaml", out=out)


def merged(folder, tmp_path, fields):
    merge(prepared(folder, fields, tmp_path / "out"))
    return tensors(tmp_path / "out")


STACKED = {
    "method": "passthrough",
    "slices": [{"models": {"a": [0, 3]}}, {"models": {"b": [2, 6]}}],
}


def test_layers_are_those_of_the_slices_counted_up(folder, tmp_path):
    found = merged(folder, tmp_path, STACKED)
    a, b = tensors(folder / "a"), tensors(folder / "b")
    up = "model.layers.{}.mlp.up_proj.weight".format
    for at in range(3):
        assert torch.equal(found[up(at)], a[up(at)])
    for at in range(3, 7):
        assert torch.equal(found[up(at)], b[up(at - 1)])
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(found["lm_head.weight"], b["lm_head.weight"])
    assert up(7) not in found
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 7


def test_what_is_listed_by_layer_in_a_configuration_follows_its_layers():
    config = {"num_hidden_layers": 3, "layer_types": ["x", "y", "z"], "other": [1, 2, 3]}
    changed = with_layers(config, (0, 2, 2, 1))
    assert changed["num_hidden_layers"] == 4
    assert changed["layer_types"] == ["x", "z", "z", "y"]
    assert changed["other"] == [1, 2, 3]


def test_a_gradient_runs_over_its_slice(folder, tmp_path):
    fields = {
        "method": "slerp",
        "base": "a",
        "t": [0.0, 1.0],
        "slices": [
            {"models": {"a": [0, 3], "b": [0, 3]}},
            {"models": {"a": [3, 4], "b": {"layers": [5, 6]}}, "t": 0.5},
        ],
    }
    found = merged(folder, tmp_path, fields)
    a, b = tensors(folder / "a"), tensors(folder / "b")
    up = "model.layers.{}.mlp.up_proj.weight".format
    pairs = [(0, 0, 0.0), (1, 1, 0.5), (2, 2, 1.0), (3, 5, 0.5)]
    for at, other, t in pairs:
        expected = apply("slerp", a[up(at)], {"b": b[up(other)]}, t=t)
        torch.testing.assert_close(found[up(at)], expected.to(found[up(at)].dtype))


def test_a_slice_takes_another_base_and_parameters_of_its_own(folder, tmp_path):
    fields = {
        "method": "task_arithmetic",
        "base": "a",
        "lambda": 0.5,
        "slices": [
            {"models": {"b": {"layers": [0, 2], "weight": 0.5}}},
            {"models": {"a": [1, 2], "b": [3, 4]}, "base": "b", "lambda": 1.0},
        ],
    }
    found = merged(folder, tmp_path, fields)
    a, b = tensors(folder / "a"), tensors(folder / "b")
    up = "model.layers.{}.mlp.up_proj.weight".format
    first = apply("task_arithmetic", a[up(1)], {"b": b[up(1)]}, lambda_=0.25)
    torch.testing.assert_close(found[up(1)], first.to(found[up(1)].dtype))
    last = apply("task_arithmetic", b[up(3)], {"a": a[up(1)]})
    torch.testing.assert_close(found[up(2)], last.to(found[up(2)].dtype))


def test_a_frankenmerge_is_a_stage_for_others(folder, tmp_path):
    recipe = {
        "mergepipe": 1,
        "models": {"a": "./a", "b": "./b"},
        "stages": {
            "six": {
                "merge": {
                    **STACKED,
                    "slices": [{"models": {"a": [0, 4]}}, {"models": {"a": [2, 4]}}],
                }
            },
            "mean": {"merge": {"method": "linear", "models": ["b", "six"]}},
        },
    }
    (folder / "stages.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    merge(prepare(folder / "stages.yaml", out=tmp_path / "out"))
    a, b = tensors(folder / "a"), tensors(folder / "b")
    up = "model.layers.{}.mlp.up_proj.weight".format
    mean = (a[up(3)].float() + b[up(5)].float()) / 2
    torch.testing.assert_close(tensors(tmp_path / "out")[up(5)], mean.to(b[up(5)].dtype))


def cut(*slices, **fields):
    return {"method": "linear", "slices": [{"models": one} for one in slices], **fields}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (cut({"a": [0, 5]}), "a, which has 4"),
        (cut({"a": [2, 2]}), "give the first, and the one behind the last"),
        (cut({"a": [-1, 2]}), "give the first"),
        (cut({"a": [0, 2], "b": [0, 3]}), "merge runs of one length"),
        (cut({"a": [0, 2]}, models=["a"]), "exactly one of `models:` and `slices:`"),
        (cut({"c": [0, 2]}), "unknown model 'c'"),
        (
            cut({"a": [0, 2]}, method="passthrough", where=[{"tensors": "*.3.*", "take": "a"}]),
            "fits nothing",
        ),
        (cut({"a": [0, 2], "b": [0, 2]}, method="passthrough"), "passthrough takes exactly 1"),
        (cut({"b": [0, 2]}, method="slerp"), "slerp needs a base"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_slices_that_make_no_sense_are_refused(folder, fields, words):
    with pytest.raises(InputError, match=words.replace("`", "[`]")):
        prepared(folder, fields)


# Parameters by tensor, and outside of the layers.


def weights(folder, value):
    fields = {"method": "linear", "models": {"a": {"weight": value}}, "normalize": False}
    steps = prepared(folder, fields).plans[0].steps
    return {step.name: step.each[0].weight for step in steps}


def test_a_list_of_cases_gives_each_tensor_the_first_that_fits(folder):
    cases = [{"tensors": "*.mlp.*", "value": [0, 1]}, {"tensors": ["*norm*"], "value": 3}]
    found = weights(folder, [*cases, {"value": 0.5}])
    assert found["model.layers.3.mlp.up_proj.weight"] == 1
    assert found["model.layers.0.input_layernorm.weight"] == 3
    assert found["lm_head.weight"] == 0.5


def test_where_no_case_fits_the_default_holds(folder):
    found = weights(folder, [{"tensors": "*.mlp.*", "value": 0.2}])
    assert found["model.layers.0.mlp.up_proj.weight"] == 0.2
    assert found["lm_head.weight"] == 1.0


def test_a_gradient_may_say_what_holds_outside_of_the_layers(folder):
    found = weights(folder, {"gradient": [0.2, 0.8], "outside": 0.5})
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == 0.5
    assert found["model.layers.0.mlp.up_proj.weight"] == 0.2
    assert found["model.layers.3.mlp.up_proj.weight"] == 0.8


@pytest.mark.parametrize(
    "value",
    [
        {"gradient": 0.5},
        {"gradient": [0, 1], "outsde": 1},
        {"gradient": []},
        [{"tensor": "*", "value": 1}],
        [{"tensors": "", "value": 1}],
        [{"tensors": "*"}],
        [{"value": 1}, 0.5],
        [{"value": "much"}],
        {"gradient": ["a"]},
    ],
    ids=str,
)
def test_a_value_of_no_known_form_is_refused_with_its_line(folder, value):
    with pytest.raises(InputError, match=r"recipe\.yaml:\d+:\d+: merge\.models\.a\.weight"):
        weights(folder, value)
