"""Indexes that lie about their shards: refused in words, and never a way out of the folder."""

from __future__ import annotations

import json
import os

import pytest
from checkpoints import edit_json, llama, llama_shapes, random_tensors, write_safetensors
from faulty import Row, local, open_timed, refused, rows, survived

INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00003.safetensors"
NORM = "model.norm.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"
BAD = ("expert_bad", "index.json")
OUTSIDE = ("outside", "not allowed")


def mapped(**names):
    """Harm: other file names for the norm (`norm`) or for other tensors in weight_map."""

    def harm(folder):
        index = json.loads((folder / INDEX).read_text())
        changed = {NORM if name == "norm" else name: file for name, file in names.items()}
        edit_json(folder / INDEX, weight_map=index["weight_map"] | changed)

    return harm


def unmapped(folder):
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][GATE]
    edit_json(folder / INDEX, weight_map=index["weight_map"])


def text(content):
    return lambda folder: (folder / INDEX).write_text(content)


def field(**fields):
    return lambda folder: edit_json(folder / INDEX, **fields)


def without_map(folder):
    (folder / INDEX).write_text('{"metadata": {}}')


def cut_in_the_middle(folder):
    whole = (folder / INDEX).read_text()
    (folder / INDEX).write_text(whole[: len(whole) // 2])


def in_two_shards(folder):
    index = json.loads((folder / INDEX).read_text())
    shard = folder / index["weight_map"]["model.embed_tokens.weight"]
    tensors = random_tensors(llama_shapes(), seed=0)
    named = [name for name, file in index["weight_map"].items() if file == shard.name]
    write_safetensors(shard, {name: tensors[name] for name in [*named, NORM]})


def linked(target, name=SECOND):
    def harm(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return harm


def linked_to_each_other(folder):
    linked(folder / SECOND, "model-00001-of-00003.safetensors")(folder)
    linked(folder / "model-00001-of-00003.safetensors")(folder)


def renamed(folder):
    """Shards with accents, spaces and emoji in their names."""
    new = "modèle teil 2 🦙.safetensors"
    (folder / SECOND).rename(folder / new)
    whole = (folder / INDEX).read_text()
    (folder / INDEX).write_text(whole.replace(SECOND, new), encoding="utf-8")


def cut_shard(folder):
    os.truncate(folder / SECOND, (folder / SECOND).stat().st_size - 100)


REFUSED = rows(
    Row("absolute path", mapped(norm="/etc/passwd"), (*BAD, "/etc/passwd"), ("absolute",)),
    Row("Windows-style traversal", mapped(norm="..\\..\\x.safetensors"), BAD, OUTSIDE),
    Row("one tensor in two shards", in_two_shards, (*BAD, NORM), ("duplicate", "both")),
    Row("no shard has a listed tensor", mapped(**{"model.layers.7.mlp.gate_proj.weight": SECOND}), (*BAD, "model.layers.7.mlp.gate_proj.weight")),
    Row("listed for another shard", mapped(norm=SECOND), (*BAD, NORM, SECOND)),
    Row("required tensor not in weight_map", unmapped, (*BAD, GATE)),
    Row("second shard absent", lambda f: (f / SECOND).unlink(), (*BAD, SECOND), ("does not exist",)),
    Row("without weight_map", without_map, (*BAD, "weight_map")),
    Row("not JSON", text("weights\n"), BAD, ("json", "line")),
    Row("an array", text("[]"), BAD, ("weight_map",)),
    Row("the same tensor twice", text('{"weight_map": {"a": "x", "a": "y"}}'), BAD, ("duplicate",)),
    Row("NUL byte", mapped(norm="model\0.safetensors"), BAD, ("file name",)),
    Row("lone surrogate", text('{"weight_map": {"a": "\\ud800"}}'), BAD, ("file name",)),
    Row("real file outside the folder", mapped(norm="../../../healthy/expert_b/model.safetensors"), (*BAD, ".."), OUTSIDE),
    Row("the folder itself", mapped(norm="."), BAD, OUTSIDE),
    Row("shard links to /etc/passwd", linked("/etc/passwd"), ("expert_bad", SECOND)),
    Row("shards link to each other", linked_to_each_other, ("expert_bad",), ("symbolic", "levels")),
    Row("cut in the middle", cut_in_the_middle, BAD, ("json", "line")),
    Row("second shard truncated", cut_shard, ("expert_bad", SECOND), ("truncated",)),
    Row("http URL", mapped(norm="http://127.0.0.1:9/x.safetensors"), BAD, ("url",)),
    Row("empty weight_map", field(weight_map={}), BAD, ("empty",)),
    Row("weight_map is a list", field(weight_map=[]), (*BAD, "weight_map")),
    Row("a file name is a number", mapped(norm=5), (*BAD, NORM)),
)  # fmt: skip
SURVIVED = rows(
    Row("healthy", lambda _: None),
    Row("accents, spaces and emoji", renamed),
    Row("wrong total_size", field(metadata={"total_size": 1}), warns=("total_size",)),
    Row("total_size is text", field(metadata={"total_size": "1"})),
    Row("metadata is null", field(metadata=None)),
)


@pytest.fixture
def expert_bad(tmp_path):
    llama(tmp_path / "healthy" / "expert_b")
    return llama(tmp_path / "a" / "b" / "expert_bad", shards=3)


@REFUSED
def test_an_index_that_lies_is_refused(row, expert_bad):
    refused(row, expert_bad)


@SURVIVED
def test_an_odd_but_honest_index_is_survived(row, expert_bad):
    assert set(survived(row, expert_bad).tensors) == set(llama_shapes())


def test_a_broken_shard_is_not_blamed_for_tensors_it_may_hold(expert_bad):
    cut_shard(expert_bad)
    _, problems = open_timed(local(expert_bad))
    assert len(problems.found) == 1


def test_ten_thousand_absent_shards_are_counted(expert_bad):
    mapped(**{f"t{i}": f"s{i}.safetensors" for i in range(10_000)})(expert_bad)
    _, problems = open_timed(local(expert_bad))
    assert "more faults" in str(problems.found[-1])
