"""`reproduce`: a result made again from its manifest, byte for byte, or what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
from checkpoints import edit_json, llama, write_json
from command_line import command
from merges import DARE, LINEAR, TIES, harm, planned, write_models
from mixtures import family, prepared
from test_plugins import OURS
from test_tokenizer import tokenizer
from transformers import AutoModelForCausalLM

from mergepipe.errors import DifferenceError, InputError
from mergepipe.manifest import MANIFEST_FILE, manifest_bytes
from mergepipe.pipeline import Again, evaluate_result, merge, prepare, reproduce
from mergepipe.pipeline.masking import masked

HELD_OUT = Path(__file__).parent.parent / "recipes/quickstart/heldout/arithmetic_text.jsonl"
QUICKSTART = Path(__file__).parent.parent / "recipes/quickstart"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """Three models in a folder, and what TIES makes of them elsewhere."""
    shutil.copytree(models, tmp_path / "models")
    made = merge(planned(tmp_path / "models", TIES, out="../merged"), sync=False)
    assert made.folder.resolve() == tmp_path / "merged"
    return tmp_path


def edit_manifest(folder: Path, **fields: object) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_bytes()) | fields
    del content["blake3"]
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes(content))


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def assert_same(merged: Path, *inputs: Path, **how: object) -> None:
    found = reproduce(merged, Again(inputs=inputs, **how))
    assert found.differences == ()
    assert found.versions == ()
    assert found.tensors == len(
        json.loads((merged / MANIFEST_FILE).read_bytes())["output"]["tensors"]
    )


STAGES = {
    "first": {"merge": LINEAR},
    "last": {"merge": {"method": "slerp", "base": "base", "models": ["first"], "t": 0.3}},
}
RECIPES = {
    "ties": (TIES, {}),
    "random": (DARE, {"seed": 7}),
    "stages": (STAGES, {}),
    "shards": (LINEAR, {"output": {"max_shard_size": "8KB", "dtype": "float16"}}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_merge_made_again_has_the_same_bytes(models, name):
    spec, fields = RECIPES[name]
    merge(planned(models, spec, out=name, **fields), sync=False)
    assert_same(models / name)


def test_inputs_are_found_wherever_they_are_by_what_they_are(folder):
    (folder / "models").rename(folder / "moved")
    with pytest.raises(InputError, match="there is no 'a' here"):
        reproduce(folder / "merged", Again())
    assert_same(folder / "merged", folder / "moved")
    (folder / "moved" / "a").rename(folder / "renamed")
    given = {"a": folder / "renamed"}
    assert_same(folder / "merged", folder / "moved", models=given)


def test_models_that_were_named_by_absolute_paths_are_found_where_they_were(models, tmp_path):
    shutil.copytree(models, tmp_path / "models")
    named = {label: str(tmp_path / "models" / label) for label in ("base", "a", "b")}
    (tmp_path / "elsewhere").mkdir()
    made = merge(planned(tmp_path / "elsewhere", TIES, models=named), sync=False)
    recipe = json.loads((made.folder / MANIFEST_FILE).read_text())["recipe"]
    assert recipe["models"] == {label: f"./{label}" for label in named}
    assert_same(made.folder)


def test_nothing_is_left_behind_unless_it_is_asked_for(folder):
    before = sorted(folder.iterdir())
    assert_same(folder / "merged")
    assert sorted(folder.iterdir()) == before
    assert_same(folder / "merged", out=folder / "again")
    kept, first = (folder / name / "model.safetensors" for name in ("again", "merged"))
    assert kept.read_bytes() == first.read_bytes()


def test_an_input_with_other_weights_is_named_before_anything_is_made(folder, capsys):
    harm(folder / "models" / "b", "model.norm.weight", 3.0)
    said = command(capsys, "reproduce", folder / "merged", "--out", folder / "again")
    assert said.status == 2
    assert "b: differs from what was merged: tensor 'model.norm.weight'" in said.err
    assert not (folder / "again").exists()


def test_an_input_with_other_settings_or_another_tokenizer_is_named(models, tmp_path):
    shutil.copytree(models, tmp_path / "models")
    write_json(tmp_path / "models" / "base" / "tokenizer.json", tokenizer())
    merge(planned(tmp_path / "models", TIES), sync=False)
    merged = tmp_path / "models" / "merged"
    edit_json(tmp_path / "models" / "base" / "tokenizer.json", version="2.0")
    with pytest.raises(InputError, match=r"base: differs .*tokenizer.json is another one"):
        reproduce(merged, Again())


def test_a_result_that_is_made_otherwise_now_is_told_by_tensor(folder, capsys):
    """As after a change in a library: the manifest is of a merge with another weight."""
    other = json.loads((folder / "merged" / MANIFEST_FILE).read_bytes())["recipe"]
    other["merge"]["models"]["a"]["weight"] = 0.6
    edit_manifest(folder / "merged", recipe=other, libraries={"numba": "0.1", "torch": "1.0"})
    said = command(capsys, "reproduce", folder / "merged")
    assert said.status == 4
    assert "error: tensor 'lm_head.weight': is not what it was" in said.err
    assert "torch: 1.0 then, " in said.err
    assert "model.norm.weight" not in said.err  # all ones, whatever the weights


def test_json_tells_machines(folder, capsys):
    found = json.loads(command(capsys, "reproduce", folder / "merged", "--json").out)
    assert (found["same"], found["tensors"], found["differences"]) == (True, 21, [])


def test_a_result_that_was_changed_is_no_result_to_make_again(folder):
    flip(folder / "merged" / "model.safetensors")
    with pytest.raises(DifferenceError, match="not those that were written"):
        reproduce(folder / "merged", Again())


@pytest.mark.parametrize("harmed", [{"recipe": []}, {"recipe": {"models": {}}}, {"inputs": 3}])
def test_a_manifest_without_a_recipe_is_refused(folder, harmed):
    edit_manifest(folder / "merged", **harmed)
    with pytest.raises(InputError, match="no recipe that can be run"):
        reproduce(folder / "merged", Again())


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's advice
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters_are_found_and_checked(models, tmp_path):
    shutil.copytree(models, tmp_path / "models")
    tuned = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(models / "base"),
        peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False),
    )
    tuned.save_pretrained(tmp_path / "models" / "lora")
    sources = {"base": "./base", "a": {"path": "./a", "adapter": "./lora"}}
    merge(planned(tmp_path / "models", {**TIES, "models": ["a"]}, models=sources), sync=False)
    merged = tmp_path / "models" / "merged"
    assert_same(merged)
    flip(tmp_path / "models" / "lora" / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"a \(adapter\): differs .*adapter_model.safetensors"):
        reproduce(merged, Again())


def test_a_model_of_the_hub_is_taken_at_its_commit_whatever_main_is_now(tmp_path, monkeypatch):
    repository = tmp_path / "cache" / "models--me--base"
    old, new = "0" * 40, "1" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(old)
    for seed, commit in enumerate((old, new)):
        llama(repository / "snapshots" / commit, seed=seed)
    (repository / "snapshots" / old / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    one = {"method": "passthrough", "models": ["model"]}
    merge(planned(tmp_path, one, models={"model": "me/base"}), sync=False)
    recorded = json.loads((tmp_path / "merged" / MANIFEST_FILE).read_bytes())["inputs"]["model"]
    assert recorded["source"] == {"hub": "me/base", "revision": None, "commit": old}
    assert recorded["license"] == "mit"
    (repository / "refs" / "main").write_text(new)
    assert_same(tmp_path / "merged")


def test_a_plugin_is_run_only_if_it_is_the_one_that_was_used(models, tmp_path):
    plugin = tmp_path / "mine_again.py"
    plugin.write_text(OURS)
    data = {
        "mergepipe": 1,
        "models": {"a": "./a"},
        "merge": {"method": "mine_again", "models": ["a"]},
    }
    (models / "plugin.yaml").write_text(json.dumps(data))
    merged = tmp_path / "merged"
    merge(prepare(models / "plugin.yaml", out=merged, plugins=[plugin]), sync=False)
    with pytest.raises(InputError, match=r"--plugin mine_again\.py"):
        reproduce(merged, Again(inputs=(models,)))
    assert_same(merged, models, plugins=(plugin,))
    plugin.write_text("raise SystemExit('this must not run')")
    with pytest.raises(InputError, match="not the one that was used"):
        reproduce(merged, Again(inputs=(models,), plugins=(plugin,)))


def test_a_mixture_of_experts_is_made_again_from_moved_models(tmp_path):
    (tmp_path / "models").mkdir()
    family(tmp_path / "models")
    merge(prepared(tmp_path / "models", out="../moe"), sync=False)
    (tmp_path / "models").rename(tmp_path / "moved")
    assert_same(tmp_path / "moe", tmp_path / "moved")


def test_mergekit_s_configuration_is_made_again(models, tmp_path):
    entries = [{"model": name, "parameters": {"weight": 0.5}} for name in ("a", "b")]
    data = {"models": entries, "merge_method": "task_arithmetic", "base_model": "base"}
    (models / "mergekit.yaml").write_text(json.dumps(data))
    merge(prepare(models / "mergekit.yaml", out=tmp_path / "merged"), sync=False)
    assert_same(tmp_path / "merged", models)


def shipped(recipe: str, out: Path, *settings: str) -> Path:
    made = prepare(QUICKSTART.parent / recipe, out=out, settings=settings)
    return merge(made, sync=False).folder


def test_transplants_and_unions_are_made_again(tmp_path):
    assert_same(
        shipped("transplant/bilingual.yaml", tmp_path / "one"),
        QUICKSTART,
        QUICKSTART.parent / "transplant",
    )
    union = shipped(
        "quickstart/recipe.yaml",
        tmp_path / "two",
        "tokenizer={source: union, tokens: {<new>: zero}}",
    )
    assert_same(union, QUICKSTART)


def test_scores_are_held_against_those_that_were_recorded(tmp_path):
    data = f"evaluate=[{{use: bits_per_byte, name: sums, data: {HELD_OUT}, limit: 4}}]"
    made = prepare(QUICKSTART / "recipe.yaml", out=tmp_path / "merged", settings=[data])
    evaluate_result(made, merge(made, sync=False), notice=lambda _: None)

    def score(again, outcome):
        return evaluate_result(again, outcome, notice=lambda _: None)

    how = Again(inputs=(QUICKSTART, HELD_OUT.parent), score=score)
    found = reproduce(tmp_path / "merged", how)
    assert len(found.scores) >= 5
    assert all(one.is_same for one in found.scores)
    content = json.loads((tmp_path / "merged" / MANIFEST_FILE).read_bytes())
    content["results"]["scores"][0]["value"] += 0.01
    edit_manifest(tmp_path / "merged", results=content["results"])
    found = reproduce(tmp_path / "merged", how)
    assert [one.is_same for one in found.scores].count(False) == 1


def test_a_recipe_s_absolute_paths_are_masked_and_still_found(models, tmp_path):
    """As in the recipe of a search's winner, which is written with absolute paths."""
    sources = {label: str(models / label) for label in ("base", "a", "b")}
    made = planned(tmp_path, TIES, models=sources, evaluate=[])
    merge(made, sync=False)
    text = (tmp_path / "merged" / MANIFEST_FILE).read_text()
    assert str(models) not in text
    assert str(tmp_path) not in text
    assert_same(tmp_path / "merged", models)


MASKS = [
    ({"models": {"a": "/home/ann/m/a"}}, {"a": "./a"}),
    ({"models": {"a": "/home/ann/a", "b": "/home/bob/a"}}, {"a": "./a", "b": "./a-2"}),
    ({"models": {"a": "/data/m/x/a", "b": "/data/m/b"}}, {"a": "./x/a", "b": "./b"}),
    ({"models": {"a": "/data/m/a", "b": "./a"}}, {"a": "./a-2", "b": "./a"}),
    ({"models": {"a": "org/name@main", "b": "~/m"}}, {"a": "org/name@main", "b": "~/m"}),
    ({"models": {"a": "~ann/models/a"}}, {"a": "./a"}),
    ({"models": {"a": "/data/m/a", "b": "a"}}, {"a": "./a-2", "b": "a"}),
    (
        {"models": {"a": "/data/m/a"}, "merge": {"base": "a"}, "evaluate": [{"name": "a"}]},
        {"a": "./a"},
    ),
]


@pytest.mark.parametrize(("recipe", "models"), MASKS)
def test_masked_paths_name_nobody_and_stay_apart(recipe, models):
    assert masked(recipe)["models"] == models


def test_texts_that_only_look_like_paths_are_left():
    recipe = {"evaluate": [{"use": "lm_eval", "suffix": "/no_think", "prompt": "/a/b\nc"}]}
    assert masked(recipe) == recipe


def test_where_the_result_went_is_only_a_name():
    assert masked({"output": {"path": "/home/ann/out"}}) == {"output": {"path": "./out"}}
