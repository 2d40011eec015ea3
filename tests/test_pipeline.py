"""A recipe from its first line to its last: what is refused when, and what is left behind."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from checkpoints import llama, random_tensors, write_json, write_safetensors
from merges import SHAPES, TASKS, planned, run, tensors, write_models

from mergepipe.errors import InputError
from mergepipe.pipeline import evaluate_result, merge, prepare


@pytest.fixture
def models(tmp_path):
    return write_models(tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Make a hub cache that holds `me/base`, in one revision called `main`."""
    cache = tmp_path / "cache"
    repository = cache / "models--me--base"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    llama(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def recipe(folder, **fields):
    (folder / "recipe.yaml").write_text(json.dumps({"mergepipe": 1, **fields}))
    return folder / "recipe.yaml"


ONE = {"method": "passthrough", "models": ["model"]}


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["me/base", "me/base@main"])
def test_a_hub_model_is_read_from_the_hubs_cache(tmp_path, name):
    file = recipe(tmp_path, models={"model": name}, merge=ONE)
    prepared = prepare(file, out=tmp_path / "out", local_files_only=True)
    assert len(tensors(merge(prepared).folder)) == len(prepared.plans[0].steps) == 21


@pytest.mark.usefixtures("hub")
def test_a_plan_of_a_hub_model_that_is_not_cached_says_what_fetches_it(tmp_path):
    file = recipe(tmp_path, models={"model": "me/other"}, merge=ONE)
    with pytest.raises(InputError, match=r"no local folder 'me/other'.*cache.*`mergepipe run`"):
        prepare(file, local_files_only=True)


@pytest.mark.usefixtures("hub")
def test_a_folder_that_exists_wins_over_a_hub_name(tmp_path):
    llama(tmp_path / "me" / "base", layers=3)
    file = recipe(tmp_path, models={"model": "me/base"}, merge=ONE)
    assert len(prepare(file).plans[0].steps) == 30


def test_faults_of_recipe_models_and_evaluations_are_reported_together(models):
    (models / "a" / "config.json").write_text("{")
    file = recipe(
        models,
        models={"base": "./base", "a": "./a"},
        merge={"method": "tiez", "base": "base", "models": ["a"]},
        evaluate=[{"use": "bits_per_bite"}, {"use": "bits_per_byte", "data": "missing.jsonl"}],
        outptu={},
    )
    with pytest.raises(InputError) as caught:
        prepare(file)
    for words in ("tiez", "outptu", "config.json", "bits_per_bite", "missing.jsonl"):
        assert words in str(caught.value)


def test_floats_in_place_of_the_bases_integers_are_refused(models):
    ids = {"model.ids": torch.arange(4)}
    floats = {"model.ids": torch.arange(4.0)}
    for label, extra in (("base", ids), ("a", floats), ("b", ids)):
        values = random_tensors(SHAPES, 0) | extra
        write_safetensors(models / label / "model.safetensors", values)
    with pytest.raises(InputError, match=r"model\.ids F32 \(not I64\)"):
        planned(models, TASKS)


@pytest.mark.parametrize("target", ["base", "base/merged", "."])
def test_an_output_that_shares_a_folder_with_a_model_is_refused(models, target):
    with pytest.raises(InputError, match="share a folder"):
        planned(models, TASKS, out=target)


def test_a_link_does_not_hide_that_the_output_is_an_input(models):
    (models / "link").symlink_to(models / "base")
    with pytest.raises(InputError, match="share a folder"):
        planned(models, TASKS, out="link")


def test_the_result_and_its_inputs_are_scored_side_by_side(models):
    pytest.importorskip("transformers")
    for label in ("base", "a", "b"):
        write_words(models / label)
    (models / "texts.jsonl").write_text('{"text": "abab"}\n{"text": "ba"}\n')
    evaluate = [{"use": "bits_per_byte", "data": "texts.jsonl"}]
    prepared = planned(models, TASKS, evaluate=evaluate)
    told = []
    scores = evaluate_result(prepared, merge(prepared), notice=told.append)
    rows = [row for row in scores.rows if row.metric == "bits_per_byte"]
    assert [row.model for row in rows] == ["base", "a", "b", "merged"]
    assert told == ["base", "a", "b", "merge"]
    assert len({row.value for row in rows}) == 4


def test_a_model_with_an_adapter_is_scored_with_its_adapter_applied(models):
    write_adapter(models / "lora", "model.layers.0.self_attn.q_proj", 16)
    for label in ("base", "a", "b"):
        write_words(models / label)
    (models / "texts.jsonl").write_text('{"text": "abab"}\n')
    prepared = planned(
        models,
        {"method": "passthrough", "models": ["tuned"]},
        models={"base": "./base", "tuned": {"path": "./base", "adapter": "./lora"}},
        evaluate=[{"use": "bits_per_byte", "data": "texts.jsonl"}],
    )
    scores = evaluate_result(prepared, merge(prepared), notice=lambda _: None)
    rows = (row for row in scores.rows if row.metric == "bits_per_byte")
    base, tuned, merged = (row.value for row in rows)
    assert base != tuned == merged


def write_adapter(folder, module, size):
    """A LoRA adapter of rank 2 on one square matrix."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 64, "target_modules": ["q_proj"]}
    write_json(folder / "adapter_config.json", settings)
    name = f"base_model.model.{module}.lora"
    factors = random_tensors({f"{name}_A.weight": (2, size), f"{name}_B.weight": (size, 2)})
    write_safetensors(folder / "adapter_model.safetensors", factors)


def write_words(folder):
    """A tokenizer of two letters."""
    words = {"a": 3, "b": 4, "<s>": 1, "<unk>": 0}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [{"id": 1, "content": "<s>", "special": True, **special}],
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "."},
                "behavior": "Isolated",
                "invert": False,
            },
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
        },
    )
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>"})


def test_nothing_is_left_beside_a_finished_output(models):
    run(models, TASKS, out="out")
    shutil.rmtree(models / "out")
    assert sorted(path.name for path in models.iterdir()) == ["a", "b", "base", "recipe.yaml"]
