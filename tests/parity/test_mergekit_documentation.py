"""The kinds of configuration that mergekit's documentation shows, run without an edit."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from both import assert_alike, small_llamas
from merges import tensors
from mixtures import family
from test_mergekit_dialect import by_mergekit, written

from mergepipe.pipeline import merge, prepare

FOLDER = Path(__file__).parent / "configurations"
TEXTS = {one.stem: one.read_text() for one in sorted(FOLDER.glob("*.yml"))}
WITH_WORDS = ("moe", "tokenizer_source", "tokenizer_union")
# mergekit draws at random, computes in the narrow dtype, or merges in several runs.
COMPARED = [
    name
    for name, text in TEXTS.items()
    if "dtype: float32" in text and name not in {*WITH_WORDS, "stages"}
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of 40 layers, and small ones that have a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    layered = small_llamas(folder, layers=40, hidden=8, vocab=16)
    return {False: layered, True: family(tmp_path_factory.mktemp("words") / "models")}


def by_us(models, folder, name):
    file = written(folder, models[name in WITH_WORDS], TEXTS[name])
    merge(prepare(file, out=folder / "ours"), sync=False)
    return tensors(folder / "ours")


def test_the_configurations_are_there():
    assert len(TEXTS) > 15
    assert len(COMPARED) > 8


@pytest.mark.parametrize("name", TEXTS)
def test_a_documented_configuration_runs_unchanged(models, tmp_path, name):
    found = by_us(models, tmp_path, name)
    assert all(bool(value.isfinite().all()) for value in found.values())
    layers = {"frankenmerge": 44, "scaled_layers": 50, **dict.fromkeys(WITH_WORDS, 2)}
    assert f"model.layers.{layers.get(name, 40) - 1}.input_layernorm.weight" in found
    assert f"model.layers.{layers.get(name, 40)}.input_layernorm.weight" not in found


@pytest.mark.parametrize("name", COMPARED)
def test_a_documented_configuration_gives_what_mergekit_gives(models, tmp_path, name):
    ours = by_us(models, tmp_path, name)
    theirs = tensors(by_mergekit(tmp_path / "theirs.yml"))
    assert_alike(ours, theirs, rtol=2e-6, atol=2e-7)


def test_stages_give_what_the_merges_give_one_after_another(models, tmp_path):
    ours = by_us(models, tmp_path, "stages")
    made = {}
    for number, part in enumerate(TEXTS["stages"].split("---\n")):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = yaml.safe_load(part)
        text = yaml.safe_dump({**config, "name": None})
        for name, path in made.items():
            text = text.replace(f"model: {name}", f"model: {path}")
        made[config.get("name")] = by_mergekit(written(folder, models[False], text))
    assert_alike(ours, tensors(made[None]), rtol=2e-6, atol=2e-7)
