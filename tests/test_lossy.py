"""Texts that a tokenizer cannot express: told, counted, and not compared with those it can."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from askable import askable, small_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from mergepipe.evaluate import (
    Evaluation,
    differences,
    find_evaluator,
    markdown,
    read_results,
    results_json,
    results_jsonl,
    score,
)
from mergepipe.model.load import local_model

TEXTS = ["plain words", "größer", "UPPER", " led by a space", "two\n lines"]


def wordless(folder):
    """A tokenizer of single small letters, that knows no other sign."""
    signs = "abcdefghijklmnopqrstuvwxyz \n"
    vocabulary = {"<unk>": 3, "<s>": 0, "</s>": 1, "<pad>": 2}
    vocabulary |= {sign: 4 + n for n, sign in enumerate(signs)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def models_(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lossy")
    for name in ("bytes", "letters"):
        askable("llama", folder / name)
    wordless(folder / "letters")
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
    return folder


def scored(folder, *names):
    evaluator = find_evaluator("bits_per_byte")
    evaluation = Evaluation(
        "bits", evaluator, evaluator.parameters(data=folder / "t.jsonl"), folder
    )
    asked = [local_model(folder / name, name) for name in names]
    return score(asked, [evaluation]).rows


def test_a_text_is_lossy_if_its_tokens_stand_for_another(models_):
    expected = {"bytes": [False] * 5, "letters": [False, True, True, False, False]}
    for name, flags in expected.items():
        assert local_model(models_ / name, name).lossy(TEXTS) == flags


def test_they_are_counted_and_said_and_survive_the_file(models_):
    rows = scored(models_, "bytes", "letters")
    assert {(row.model, row.lossy) for row in rows} == {("bytes", ()), ("letters", ("2", "3"))}
    assert "letters cannot express 2 of 5 texts of bits as they are" in markdown(rows)
    assert "of bytes cannot" not in markdown(rows)
    counts = [one["lossy"] for one in results_json(rows)["results"]]
    assert set(counts) == {0, 2}
    assert read_results(results_jsonl(rows)).rows == rows


def test_they_are_compared_only_between_models_that_share_the_trouble(models_):
    rows = scored(models_, "bytes", "letters")
    assert differences(rows, "bytes")[0].n == 3
    other = [replace(row, model="other") for row in rows if row.model == "letters"]
    assert differences([*rows, *other], "letters")[-1].n == 5


def test_a_space_that_the_tokenizer_puts_in_front_is_no_loss(tmp_path):
    askable("llama", tmp_path)
    tokenizer = small_tokenizer("$A")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert local_model(tmp_path, "spaced").lossy(TEXTS) == [False] * 5
