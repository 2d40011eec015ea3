"""Vocabularies united by mergekit and by us: the same rows for the same words.

On purpose other than there: the ids of tokens that a union appends (there they depend on hashes);
tokens that no row belongs to (there an error, or left in the tokenizer).
"""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from merges import tensors
from torch.testing import assert_close
from worded import EMBEDDING, HEAD, SPECIAL, WORDS, ids_of, rows_of, worded

from mergepipe.pipeline import merge, prepare

CHATML = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base of 64 words, one with ChatML's tokens, one with moved ids, one with unused tokens."""
    folder = tmp_path_factory.mktemp("models")
    shuffled = (*SPECIAL, *WORDS[::-1])
    found = {
        "base": worded(folder / "base", seed=1),
        "chatml": worded(folder / "chatml", CHATML, seed=2),
        "moved": worded(folder / "moved", words=shuffled, seed=3),
        "fewer": worded(folder / "fewer", words=(*SPECIAL, *WORDS[:50]), seed=4),
        "more": worded(folder / "more", ("<|im_end|>", "<|tool|>"), seed=5),
    }
    unused = [f"<UNUSED_{n}>" for n in range(4)]
    found["padded"] = worded(folder / "padded", unused, rows=64, seed=6)
    return found


def both(models, folder, labels, tokenizer, method="linear", **fields):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    each = [{"model": str(models[one]), "parameters": {"weight": 1.0}} for one in labels]
    config = {
        "base_model": str(models[labels[0]]),  # without one it takes one at random
        "merge_method": method,
        "models": each,
        "dtype": "float32",
        "tokenizer": tokenizer,
        **fields,
    }
    (folder / "theirs.yml").write_text(yaml.safe_dump(config))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(config), str(folder / "theirs"), options)
    merge(prepare(folder / "theirs.yml", out=folder / "ours"))
    return folder / "ours", folder / "theirs"


def assert_same(ours, theirs, tokens, rows=None, *, atol=1e-6):
    """The same tokens with the same rows; the sizes that are said."""
    rows = rows or tokens
    assert ids_of(ours).keys() == ids_of(theirs).keys()
    assert len(ids_of(ours)) == tokens
    for folder in (ours, theirs):
        assert json.loads((folder / "config.json").read_text())["vocab_size"] == rows
        assert tensors(folder)[EMBEDDING].shape[0] == tensors(folder)[HEAD].shape[0] == rows
    for name in (EMBEDDING, HEAD):
        mine, other = rows_of(ours, name), rows_of(theirs, name)
        for token, row in mine.items():
            assert_close(row, other[token], rtol=1e-5, atol=atol, msg=f"{name}: {token}")


LINEAR = {
    "base": (("base", "chatml"), {"source": "base"}, 64, 64),
    "union": (("base", "chatml"), {"source": "union"}, 66, 66),
    "padding": (("base", "chatml"), {"source": "union", "pad_to_multiple_of": 16}, 66, 80),
    "moved ids": (("base", "moved"), {"source": "base"}, 64, 64),
    "moved ids and added tokens": (("moved", "chatml"), {"source": "union"}, 66, 66),
    "fewer words": (("base", "fewer"), {"source": "base"}, 64, 64),
    "a mean of two": (("base", "chatml", "more"), {"source": "union"}, 67, 67),
}


@pytest.mark.parametrize("name", LINEAR)
def test_every_word_has_the_row_that_mergekit_gives_it(models, tmp_path, name):
    labels, tokenizer, tokens, rows = LINEAR[name]
    ours, theirs = both(models, tmp_path, labels, tokenizer)
    assert_same(ours, theirs, tokens, rows)
    if rows > tokens:
        for one in (EMBEDDING, HEAD):
            mine, other = (tensors(folder)[one][tokens:] for folder in (ours, theirs))
            assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_tokenizer_of_a_model_may_be_named(models, tmp_path):
    tokenizer = {"source": str(models["chatml"])}
    ours, theirs = both(models, tmp_path, ("base", "chatml"), tokenizer)
    assert_same(ours, theirs, 66)


def test_words_that_the_base_lacks_keep_their_row_in_methods_on_task_vectors(models, tmp_path):
    base = str(models["base"])
    found = both(
        models,
        tmp_path,
        ("chatml",),
        {"source": "union"},
        "task_arithmetic",
        base_model=base,
    )
    assert_same(*found, 66)
    assert_close(rows_of(found[0])["<|im_end|>"], rows_of(models["chatml"])["<|im_end|>"])


def test_slerp_sees_united_vocabularies(models, tmp_path):
    fields = {"base_model": str(models["base"]), "parameters": {"t": 0.5}}
    ours, theirs = both(
        models, tmp_path, ("base", "chatml"), {"source": "union"}, "slerp", **fields
    )
    assert_same(ours, theirs, 66)


ROWS = {
    "a model's": lambda models: {"source": str(models["chatml"]), "force": True},
    "another token's": lambda models: {
        "source": {"kind": "model_token", "model": str(models["base"]), "token": "<s>"},
        "force": True,
    },
    "an id's": lambda models: {
        "source": {"kind": "model_token", "model": str(models["chatml"]), "token_id": 64},
    },
    "zeros": lambda _: {"source": {"kind": "zero"}, "force": True},
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_single_words_are_those_that_mergekit_takes(models, tmp_path, name):
    tokenizer = {"source": "union", "tokens": {"<|im_end|>": ROWS[name](models)}}
    tokenizer["tokens"]["_tok_10"] = ROWS[name](models)
    tokenizer["tokens"]["<|new|>"] = {"source": {"kind": "zero"}}
    ours, theirs = both(models, tmp_path, ("base", "chatml"), tokenizer)
    assert_same(ours, theirs, 67)


def test_tokens_without_a_row_end_mergekit_and_are_left_out_here(models, tmp_path):
    with pytest.raises(KeyError):
        both(models, tmp_path, ("base", "padded"), {"source": str(models["padded"])})
    merge(prepare(tmp_path / "theirs.yml", out=tmp_path / "ours"))
    assert len(ids_of(tmp_path / "ours")) == 64
    mean = (rows_of(models["base"])["_tok_9"] + rows_of(models["padded"])["_tok_9"]) / 2
    assert torch.equal(rows_of(tmp_path / "ours")["_tok_9"], mean)


def test_a_union_leaves_tokens_without_a_row_out_as_mergekit_does(models, tmp_path):
    ours, theirs = both(models, tmp_path, ("base", "padded", "chatml"), {"source": "union"})
    assert_same(ours, theirs, 66)
