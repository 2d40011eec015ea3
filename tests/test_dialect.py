"""mergekit's configurations: what they mean here, and every word that is said about them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from checkpoints import llama
from command_line import command
from merges import tensors

from mergepipe.errors import InputError, Problems
from mergepipe.pipeline import merge, prepare, read_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("dialect")
    for seed, label in enumerate(("base", "a", "b")):
        llama(made / label, seed=seed, layers=4)
    return made


HEALTHY = {
    "models": [
        {"model": "a", "parameters": {"weight": 0.5, "density": 0.5}},
        {"model": "b", "parameters": {"weight": 0.5, "density": 0.5}},
    ],
    "merge_method": "ties",
    "base_model": "base",
}
SLICES = {
    "slices": [
        {"sources": [{"model": "a", "layer_range": [0, 2]}]},
        {"sources": [{"model": "b", "layer_range": [1, 4]}]},
    ],
    "merge_method": "passthrough",
    "base_model": "a",
}


def write(folder, config):
    text = config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False)
    (folder / "theirs.yml").write_text(text)


def converted(folder, config):
    """The recipe that a configuration means, and what is said about it."""
    write(folder, config)
    problems = Problems()
    document = read_recipe(folder / "theirs.yml", problems)
    return document.data, problems


def said(folder, config):
    """Warnings of a configuration that can be run."""
    _, problems = converted(folder, config)
    problems.raise_any()
    return list(problems.warnings)


def test_a_healthy_configuration_is_taken_without_a_word(folder):
    assert said(folder, HEALTHY) == []


def test_its_recipe_gives_every_parameter_in_our_words(folder):
    recipe, _ = converted(folder, HEALTHY)
    assert recipe["models"] == {"base": "./base", "a": "./a", "b": "./b"}
    assert recipe["merge"]["models"]["a"] == {"weight": 0.5, "density": 0.5}
    fixed = {"scope": "tensor", "elect": "mergekit", "normalize": True, "lambda": 1.0}
    assert fixed.items() <= recipe["merge"].items()


def test_what_convert_prints_is_a_recipe_that_gives_the_same(folder, capsys, tmp_path):
    converted(folder, HEALTHY)
    text = command(capsys, "convert", folder / "theirs.yml").out
    (folder / "ours.yaml").write_text(text)
    for name in ("theirs.yml", "ours.yaml"):
        merge(prepare(folder / name, out=tmp_path / name))
    one, other = (tensors(tmp_path / name) for name in ("theirs.yml", "ours.yaml"))
    assert all((one[name] == other[name]).all() for name in one)


# What mergekit passes over, or does, without a word.

SURPRISES = {
    "an unknown field": ({"merge_metod": "x"}, "merge_metod: unknown field"),
    "a parameter the method lacks": ({"parameters": {"t": 0.5}}, "has no parameter 't'"),
    "no density": (
        {
            "models": [{"model": "a", "parameters": {"weight": 1}}],
        },
        "1.0 trims nothing",
    ),
    "a shared parameter under a model": (
        {"models": [{"model": "a", "parameters": {"weight": 1, "density": 1, "normalize": False}}]},
        "under a model it has no effect",
    ),
    "parameters of the base": (
        {
            "models": [
                {"model": "base", "parameters": {"weight": 1}},
                {"model": "a", "parameters": {"weight": 1, "density": 0.5}},
            ]
        },
        "'weight' of the base has no effect",
    ),
    "arithmetic in bf16": ({"dtype": "bfloat16"}, "here it is fp32"),
    "a density over 1": (
        {"models": [{"model": "a", "parameters": {"weight": 1, "density": 1.5}}]},
        "1.5 is taken for 1",
    ),
    "a gradient that ends elsewhere": (
        {"models": [{"model": "a", "parameters": {"weight": [0, 1], "density": 0.5}}]},
        "take the gradient's first value, 0",
    ),
}


@pytest.mark.parametrize("name", SURPRISES)
def test_what_surprises_is_a_warning_with_its_line(folder, name):
    change, words = SURPRISES[name]
    warnings = said(folder, {**HEALTHY, **change})
    assert len(warnings) == 1
    assert words in warnings[0]
    assert re.match(r"theirs\.yml:\d+:\d+: ", warnings[0])


def test_without_a_base_the_first_model_gives_the_configuration(folder):
    config = {"models": HEALTHY["models"], "merge_method": "linear"}
    recipe, problems = converted(folder, config)
    assert any("picks a model at random" in one for one in problems.warnings)
    prepared = prepare(folder / "theirs.yml")
    assert prepared.plans[0].donor.label == next(iter(recipe["models"])) == "a"


def test_a_last_slice_with_more_sources_is_merged_whole(folder):
    config = {
        **SLICES,
        "merge_method": "linear",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 2]}]},
            {"sources": [{"model": x, "layer_range": [2, 4]} for x in ("a", "b")]},
        ],
        "parameters": {"weight": 0.5},
    }
    assert any("leave sources of the last slice out" in one for one in said(folder, config))
    steps = {step.name: step for step in prepare(folder / "theirs.yml").plans[0].steps}
    assert [one.label for one in steps["model.norm.weight"].inputs] == ["a", "b"]


def test_fields_of_recipes_may_stand_beside_mergekits(folder, tmp_path, capsys):
    write(folder, {**HEALTHY, "dtype": "float32", "evaluate": []})
    setting = ("--set", "seed=7", "--set", "output.max_shard_size=20KB")
    assert command(capsys, "run", folder / "theirs.yml", "-o", tmp_path / "o", *setting).err
    manifest = json.loads((tmp_path / "o" / "mergepipe.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["recipe"]["output"] == {"dtype": "float32", "max_shard_size": "20KB"}
    assert len(list((tmp_path / "o").glob("*.safetensors"))) > 1


def test_a_wrong_field_of_recipes_is_refused_where_it_stands(folder):
    write(folder, {**HEALTHY, "output": {"dtype": "int8"}})
    with pytest.raises(InputError, match=r"theirs\.yml:\d+:\d+: output\.dtype: must be"):
        prepare(folder / "theirs.yml")


def modules(**parts):
    return {"modules": parts, "merge_method": "passthrough", "base_model": "base"}


def test_parts_that_are_copied_are_rules(folder):
    one = {"models": [{"model": "a"}]}
    tower = {"slices": [{"sources": [{"model": "b", "layer_range": [0, 4]}]}]}
    recipe, problems = converted(
        folder, modules(text_decoder=one, multi_modal_projector=one, vision_tower=tower)
    )
    problems.raise_any()
    rules = recipe["merge"]["where"]
    assert [rule["take"] for rule in rules] == ["a", "b"]
    assert "*visual.merger.*" in rules[0]["tensors"]


def test_parts_of_other_models_are_stages_of_their_own(folder):
    parts = {
        "shared": {"models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": 1}},
        "encoder": {"models": [{"model": "a"}], "parameters": {"weight": 2}},
    }
    config = {"modules": parts, "merge_method": "task_arithmetic", "base_model": "base"}
    recipe, problems = converted(folder, config)
    problems.raise_any()
    assert list(recipe["stages"]) == ["result-encoder", "result"]
    (rule,) = recipe["stages"]["result"]["merge"]["where"]
    assert rule == {"tensors": ["encoder.*", "*.encoder.*"], "take": "result-encoder"}


def test_what_a_part_does_not_say_is_the_bases(folder):
    config = modules(vision_tower={"models": [{"model": "a"}]})
    recipe, problems = converted(folder, config)
    assert any("mergekit leaves them out" in one for one in problems.warnings)
    assert [rule.get("take") for rule in recipe["merge"]["where"]] == ["base", None, "base"]


LAYERS = {"slices": [{"sources": [{"model": "a", "layer_range": [1, 3]}]}]}
BAD_PARTS = {
    "models and slices": ({"text_decoder": {"models": [{"model": "a"}], **LAYERS}}, "exactly one"),
    "layers of the tower": (
        {"text_decoder": {"models": [{"model": "a"}]}, "vision_tower": LAYERS},
        "in the language model only",
    ),
    "layers beside a merge": (
        {
            "text_decoder": LAYERS,
            "vision_tower": {"models": [{"model": x} for x in "ab"]},
        },
        "while others merge other models",
    ),
    "a list": ([1], "must be a mapping of modules"),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_parts_that_cannot_be_said_are_refused(folder, name):
    parts, words = BAD_PARTS[name]
    write(folder, {**modules(), "modules": parts})
    with pytest.raises(InputError, match=words):
        prepare(folder / "theirs.yml")


# What is an error, in mergekit too or only here.

FAULTS = {
    "no weight": ({"models": [{"model": "a"}]}, "'weight' has no value"),
    "a weight for some tensors only": (
        {"models": [{"model": "a", "parameters": {"weight": [{"filter": "mlp", "value": 1}]}}]},
        "that no filter is in",
    ),
    "an unknown method": ({"merge_method": "tis"}, "did you mean 'ties'"),
    "models and slices": ({"slices": SLICES["slices"]}, "exactly one of models, slices"),
    "a model twice": ({"models": [HEALTHY["models"][0]] * 2}, "the same model twice"),
    "a list in a gradient": ({"parameters": {"lambda": [[1], 0.5]}}, "must be a number"),
    "a mapping as a value": ({"parameters": {"lambda": {"value": {}}}}, "must be a number"),
    "a method that is a list": ({"merge_method": [{}]}, "unknown method"),
    "a model without a path": ({"base_model": {"model": {"path": 3}}}, "needs `model: {path"),
    "an int64 output": ({"dtype": "int64"}, "cannot be written"),
    "a density that is text": (
        {"models": [{"model": "a", "parameters": {"weight": 1, "density": "half"}}]},
        "must be a valid number",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_with_its_line(folder, capsys, name):
    change, words = FAULTS[name]
    write(folder, {**HEALTHY, **change})
    result = command(capsys, "plan", folder / "theirs.yml")
    assert result.status == 2
    assert words in result.err
    assert re.search(r"theirs\.yml:\d+:\d+", result.err)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([0, -1], "give the first, and the one behind the last"),
        ([2, 2], "give the first"),
        ([0, 9], "which has 4"),
        ([3, 1], "give the first"),
    ],
)
def test_layers_that_are_not_there_are_refused(folder, capsys, layers, words):
    sources = [{"sources": [{"model": "a", "layer_range": layers}]}]
    write(folder, {**SLICES, "slices": sources})
    result = command(capsys, "plan", folder / "theirs.yml")
    assert result.status == 2
    assert words in result.err


def test_a_folder_with_an_at_sign_or_a_plus_is_that_folder(folder):
    llama(folder / "a+b@c", seed=5, layers=4)
    recipe, problems = converted(
        folder,
        {**HEALTHY, "models": [{"model": "a+b@c", "parameters": {"weight": 1, "density": 0.5}}]},
    )
    assert recipe["models"]["a-b"] == "./a+b@c"
    assert any("would cut the name" in one for one in problems.warnings)


def test_revisions_and_adapters_are_read_from_names(folder):
    models = [
        {"model": "org/name@v2+other/lora@main"},
        {"model": {"model": {"path": "org/name", "revision": "v1"}}},
    ]
    config = {"models": models, "merge_method": "linear", "parameters": {"weight": 1}}
    recipe, _ = converted(folder, config)
    assert list(recipe["models"].values()) == [
        {"path": "org/name@v2", "adapter": "other/lora@main"},
        "org/name@v1",
    ]


def test_several_documents_are_stages(folder, tmp_path):
    text = "\n---\n".join(
        yaml.safe_dump(one)
        for one in (
            {**HEALTHY, "name": "linear"},
            {
                "models": [
                    {"model": "linear", "parameters": {"weight": 0.3}},
                    {"model": "base", "parameters": {"weight": 0.7}},
                ],
                "merge_method": "linear",
            },
        )
    )
    recipe, problems = converted(folder, text)
    problems.raise_any()
    assert list(recipe["stages"]) == ["linear", "result"]
    # mergekit would take the method's name for the stage of that name.
    assert recipe["stages"]["result"]["merge"]["method"] == "linear"
    merge(prepare(folder / "theirs.yml", out=tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_an_adapter_on_another_documents_result_is_refused_in_words(folder):
    second = {
        "models": [{"model": "first+./lora", "parameters": {"weight": 1}}],
        "merge_method": "linear",
    }
    text = "\n---\n".join(yaml.safe_dump(one) for one in ({**HEALTHY, "name": "first"}, second))
    with pytest.raises(InputError, match="cannot be put on what another document makes"):
        converted(folder, text)


@pytest.mark.parametrize("template", ["chatml", "{{ messages[0].content }}"])
def test_a_chat_template_is_written_beside_the_model(folder, tmp_path, template):
    converted(folder, {**HEALTHY, "chat_template": template})
    merge(prepare(folder / "theirs.yml", out=tmp_path / "out"))
    text = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert ("<|im_start|>" in text) == (template == "chatml")
    settings = tmp_path / "out" / "tokenizer_config.json"
    assert not settings.exists() or "chat_template" not in json.loads(settings.read_text())


def test_two_documents_that_are_no_configurations_are_refused(folder):
    (folder / "two.yml").write_text("mergepipe: 1\n---\nmergepipe: 1\n")
    with pytest.raises(InputError, match="a second YAML document"):
        prepare(folder / "two.yml")


def test_the_page_on_mergekit_shows_what_lint_says(folder, capsys):
    page = (Path(__file__).parent.parent / "docs" / "mergekit.md").read_text()
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    (folder / "merge.yml").write_text(example[1])
    said = command(capsys, "lint", folder / "merge.yml").out
    assert said
    assert said == re.sub("(?m)^    ", "", "".join(re.findall(r"    merge\.yml:.*\n", page)))


def test_lint_prints_warnings_for_machines(folder, capsys):
    converted(folder, {**HEALTHY, "dtype": "bfloat16"})
    result = command(capsys, "lint", "--json", folder / "theirs.yml")
    assert result.status == 0
    assert len(json.loads(result.out)["warnings"]) == 1


def test_cases_that_mergekit_passes_over_are_told(folder):
    def with_weight(value):
        first, second = HEALTHY["models"]
        first = {**first, "parameters": {"weight": value, "density": 0.5}}
        return {**HEALTHY, "models": [first, second]}

    typo = [{"fliter": "mlp", "value": 0.3}, {"value": 1}]
    told = "\n".join(said(folder, with_weight(typo)))
    assert "unknown field 'fliter' has no effect" in told
    assert "what follows a case without a filter has no effect" in told
    with pytest.raises(InputError, match="`filter` is a part of a tensor's name"):
        converted(folder, with_weight([{"filter": ["mlp", "attn"], "value": 1}]))


def test_a_revision_of_a_folder_is_told_to_mean_nothing(folder):
    first, second = HEALTHY["models"]
    at = {"model": {"path": "a", "revision": "main"}}
    told = said(folder, {**HEALTHY, "models": [{**first, "model": at}, second]})
    assert any("a folder has no revisions" in one for one in told)
