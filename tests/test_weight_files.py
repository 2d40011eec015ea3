"""Models that are weights alone: a file, without configuration and tokenizer."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from checkpoints import random_tensors, write_safetensors
from command_line import command
from merges import small, tensors

from mergepipe.errors import InputError
from mergepipe.pipeline import merge, prepare

SHAPES = {"net.0.weight": (4, 6), "net.0.bias": (4,), "embed.weight": (10, 6)}
LINEAR = {"method": "linear", "models": ["a", "b"]}


@pytest.fixture
def folder(tmp_path):
    for seed, label in enumerate("ab"):
        write_safetensors(tmp_path / f"{label}.safetensors", random_tensors(SHAPES, seed))
    return tmp_path


def prepared(folder, spec=LINEAR, models=("a.safetensors", "b.safetensors"), **fields):
    recipe = {"mergepipe": 1, "models": dict(zip("ab", models, strict=True)), "merge": spec}
    (folder / "recipe.yaml").write_text(json.dumps({**recipe, **fields}))
    return prepare(folder / "recipe.yaml", out=folder / "out")


def test_files_are_merged_without_a_word(folder):
    ready = prepared(folder)
    assert ready.warnings == merge(ready).warnings == ()
    a, b = (random_tensors(SHAPES, seed) for seed in (0, 1))
    found = tensors(folder / "out")
    expected = {name: ((a[name].float() + b[name].float()) / 2).bfloat16() for name in a}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_lies_beside_a_file_is_neither_read_nor_copied(folder):
    (folder / "config.json").write_text("not JSON")
    (folder / "tokenizer_config.json").write_text("not JSON")
    merge(prepared(folder))
    written = sorted(one.name for one in (folder / "out").iterdir())
    assert written == ["mergepipe.json", "model.safetensors", "run.json"]


def test_tied_names_of_a_pickle_are_both_written(folder):
    shared = torch.ones(3, 2)
    for label in "ab":
        torch.save({"one": shared, "two": shared}, folder / f"{label}.pt")
    merge(prepared(folder, models=("a.pt", "b.pt")))
    assert sorted(tensors(folder / "out")) == ["one", "two"]


def test_a_file_and_a_folder_are_refused_together(folder):
    small(folder / "model", seed=0)
    with pytest.raises(InputError, match="a is weights alone, b is a model with a configuration"):
        prepared(folder, models=("a.safetensors", "model"))


def test_names_that_differ_are_refused_with_a_rule_that_helps(folder):
    fewer = {name: shape for name, shape in SHAPES.items() if name != "net.0.bias"}
    write_safetensors(folder / "b.safetensors", random_tensors(fewer, 1))
    with pytest.raises(InputError, match=r"1 tensors are missing .*add a rule: .*take: a"):
        prepared(folder)
    rule = {"tensors": "net.0.bias", "take": "a"}
    merge(prepared(folder, {**LINEAR, "where": [rule]}))
    assert sorted(tensors(folder / "out")) == sorted(SHAPES)


def test_a_pickle_that_runs_code_is_refused(folder):
    torch.save({"net.0.weight": print}, folder / "b.pt")
    with pytest.raises(InputError, match=r"b.pt.*unsafe or damaged pickle"):
        prepared(folder, models=("a.safetensors", "b.pt"))


@pytest.mark.parametrize(
    "fields",
    [
        {"tokenizer": "a"},
        {"chat_template": "b"},
        {"chat_template": {"jinja": "x"}},
        {"output": {"config": "a"}},
        {"evaluate": [{"use": "bits_per_byte", "data": "a.txt"}]},
    ],
)
def test_what_weights_alone_cannot_have_is_refused(folder, fields):
    (folder / "a.txt").write_text('{"text": "some text"}')
    with pytest.raises(InputError, match="without configuration and tokenizer"):
        prepared(folder, **fields)


def test_the_output_cannot_be_the_folder_of_the_files(folder):
    shutil.copytree(folder, folder / "out")
    with pytest.raises(InputError, match="share a folder"):
        prepared(folder, models=("out/a.safetensors", "out/b.safetensors"))


def test_a_file_that_holds_no_weights_is_no_model(folder, capsys):
    (folder / "a.gguf").write_bytes(b"GGUF")
    (folder / "recipe.yaml").write_text(
        "mergepipe: 1\nmodels: {a: ./a.gguf}\nmerge: {method: linear, models: [a]}\n"
    )
    said = command(capsys, "plan", folder / "recipe.yaml")
    assert said.status == 2
    assert "is a file, not a directory" in said.err
