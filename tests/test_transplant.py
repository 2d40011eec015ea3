"""Transplants: what must be the same after, whatever the method, and what the simple ones make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import edit_json
from material import tokenizer
from safetensors.torch import load_file
from transplant_cases import Rows, glass_task, make, make_task, row_of, words
from transplanted import (
    EMBEDDING,
    HEAD,
    LETTERS,
    WORDS,
    report,
    set_tensor,
    tensors,
    transplant,
    write_model,
)

from mergepipe.errors import InputError
from mergepipe.tokenizer import read_vocabulary
from mergepipe.transplant.segmenting import segmenter

METHODS = ("zero", "mean", "normal", "mvn", "nearest", "subword", "omp", "common_interpolation")


def row(folder: Path, name: str, text: str) -> torch.Tensor:
    """The row of a token in a table of a checkpoint."""
    return tensors(folder)[name][read_vocabulary(folder, "it").ids[text]]


@pytest.mark.parametrize("method", METHODS)
def test_a_model_given_its_own_tokenizer_is_the_same(tmp_path, method):
    model = write_model(tmp_path / "model", padding=5)
    donor = write_model(tmp_path / "donor", padding=5, seed=1)
    made = transplant(model, donor, tmp_path / "out", method)
    assert all(made[name].equal(value) for name, value in tensors(model).items())


@pytest.mark.parametrize("method", METHODS)
def test_other_ids_for_the_same_tokens_move_rows_and_change_no_bit(tmp_path, method):
    order = np.random.default_rng(0).permutation(len(WORDS))
    model = write_model(tmp_path / "model")
    donor = write_model(tmp_path / "donor", [WORDS[at] for at in order], seed=1)
    made = transplant(model, donor, tmp_path / "out", method)
    before = tensors(model)
    for name in (EMBEDDING, HEAD):
        assert made[name][0].equal(before[name][0])
        assert made[name][1:].equal(before[name][1:][torch.from_numpy(order)])


@pytest.mark.parametrize("method", METHODS)
def test_tokens_that_both_have_keep_their_rows_bit_for_bit(tmp_path, method):
    model = write_model(tmp_path / "model")
    donor = write_model(tmp_path / "donor", (*LETTERS, "▁the", "ho", "▁sings"), seed=1)
    made = transplant(model, donor, tmp_path / "out", method)
    for text in (*LETTERS, "▁the"):
        for name in (EMBEDDING, HEAD):
            assert row(tmp_path / "out", name, text).equal(row(model, name, text)), text
    assert made[EMBEDDING].isfinite().all()


def test_all_but_the_tables_is_copied_bit_for_bit(tmp_path):
    model = write_model(tmp_path / "model")
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho"), seed=1)
    made = transplant(model, donor, tmp_path / "out")
    before = tensors(model)
    assert made.keys() == before.keys()
    rest = made.keys() - {EMBEDDING, HEAD}
    assert all(made[name].equal(before[name]) for name in rest)


def test_a_transplant_to_the_same_tokenizer_twice_is_one(tmp_path):
    model = write_model(tmp_path / "model")
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho", "▁sings"), seed=1)
    once = transplant(model, donor, tmp_path / "once", "omp", "k=4")
    twice = transplant(tmp_path / "once", donor, tmp_path / "twice", "omp", "k=4")
    assert all(twice[name].equal(value) for name, value in once.items())


def test_a_token_more_changes_no_row_but_its_own(tmp_path):
    model = write_model(tmp_path / "model")
    few = write_model(tmp_path / "few", (*LETTERS, "ho"), seed=1)
    more = write_model(tmp_path / "more", (*LETTERS, "ho", "qqqqq"), seed=1)
    one = transplant(model, few, tmp_path / "one")
    other = transplant(model, more, tmp_path / "other")
    for name in (EMBEDDING, HEAD):
        assert other[name][:-1].equal(one[name])


@pytest.mark.parametrize("tied", [(False, False), (False, True), (True, False), (True, True)])
def test_a_tied_model_stays_tied_and_an_untied_one_gets_both_tables(tmp_path, tied):
    base_tied, donor_tied = tied
    model = write_model(tmp_path / "model", tied=base_tied)
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho"), seed=1, tied=donor_tied)
    made = transplant(model, donor, tmp_path / "out", "omp", "k=4")
    assert (HEAD in made) is not base_tied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is base_tied
    assert [one["side"] for one in report(tmp_path / "out")["tables"]] == (
        ["input"] if base_tied else ["input", "output"]
    )


def test_each_table_of_an_untied_pair_is_made_in_its_own_space(tmp_path):
    model = write_model(tmp_path / "model", dtype="F32")
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho"), seed=1, dtype="F32")
    # In the donor's input table `ho` is `h`, in its head it is `o`.
    for name, letter in ((EMBEDDING, "h"), (HEAD, "o")):
        table = tensors(donor)[name]
        table[-1] = row(donor, name, letter)
        set_tensor(donor, name, table)
    transplant(model, donor, tmp_path / "out", "nearest")
    for name, letter in ((EMBEDDING, "h"), (HEAD, "o")):
        made, expected = row(tmp_path / "out", name, "ho"), row(model, name, letter)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_the_mean_of_pieces_is_what_their_rows_say(tmp_path):
    model = write_model(tmp_path / "model", dtype="F32")
    donor = write_model(tmp_path / "donor", (*LETTERS, "▁catho"), seed=1, dtype="F32")
    transplant(model, donor, tmp_path / "out")
    expected = torch.stack([row(model, EMBEDDING, one) for one in ("▁cat", "h", "o")]).mean(0)
    made = row(tmp_path / "out", EMBEDDING, "▁catho")
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "sides"),
    [
        ("sum", ((1, 1, 1), (1, 1, 1))),
        ("weighted_mean", ((1 / 6, 2 / 6, 3 / 6), (3 / 6, 2 / 6, 1 / 6))),
        ("first_last", ((0, 0, 1), (1, 0, 0))),
    ],
)
def test_pieces_are_weighed_by_the_side_of_the_table(tmp_path, mode, sides):
    model = write_model(tmp_path / "model", dtype="F32")
    donor = write_model(tmp_path / "donor", (*LETTERS, "▁catho"), seed=1, dtype="F32")
    transplant(model, donor, tmp_path / "out", "subword", f"mode={mode}")
    for name, weights in zip((EMBEDDING, HEAD), sides, strict=True):
        pieces = torch.stack([row(model, name, one) for one in ("▁cat", "h", "o")])
        expected = (torch.tensor(weights)[:, None] * pieces).sum(0)
        made = row(tmp_path / "out", name, "▁catho")
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_the_mean_is_over_ordinary_tokens_that_have_a_row(tmp_path):
    base = words(tmp_path / "base", LETTERS)
    donor = words(tmp_path / "donor", (*LETTERS, "ho"))
    table = torch.randn(len(LETTERS) + 9, 6)
    made = make("mean", make_task(base, donor, table))
    torch.testing.assert_close(made.rows[0], table[1:27].mean(0), rtol=0, atol=1e-6)


def test_rows_drawn_have_the_covariance_of_the_base(tmp_path):
    base = words(tmp_path / "base", [f"w{n}" for n in range(500)])
    donor = words(tmp_path / "donor", [f"v{n}" for n in range(4000)])
    mix = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 3.0]])
    table = torch.randn(501, 3, generator=torch.Generator().manual_seed(0)) @ mix + 2
    task = make_task(base, donor, table)
    rows = make("mvn", task).rows
    expected = torch.cov(table[1:].T, correction=0)
    torch.testing.assert_close(torch.cov(rows.T), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(rows.mean(0), table[1:].mean(0), rtol=0, atol=0.15)
    # Column by column the correlation is lost.
    alone = torch.cov(make("normal", task).rows.T)
    torch.testing.assert_close(alone.diagonal(), expected.diagonal(), rtol=0.1, atol=0.1)
    assert abs(float(alone[0, 1])) < 0.1 < float(expected[0, 1])


def test_more_columns_than_rows_can_be_drawn(tmp_path):
    base, donor = words(tmp_path / "base", "abc"), words(tmp_path / "donor", "abcd")
    rows = make("mvn", make_task(base, donor, torch.randn(4, 16))).rows
    assert rows.isfinite().all()


@pytest.mark.parametrize("method", ["normal", "mvn"])
def test_what_is_drawn_for_a_token_depends_on_no_other(tmp_path, method):
    base, few = words(tmp_path / "base", LETTERS), words(tmp_path / "few", ["zz", "yy"])
    table = torch.randn(27, 4)
    two = make_task(base, few, table)
    alone = make_task(base, few, table)
    object.__setattr__(alone, "missing", two.missing[1:])
    assert row_of(alone, make(method, alone), "yy").equal(row_of(two, make(method, two), "yy"))


def test_the_nearest_token_in_the_donor_lends_its_row(tmp_path):
    base, donor = words(tmp_path / "base", "abc"), words(tmp_path / "donor", "abcd")
    theirs = torch.tensor([[9.0, 9], [1, 0], [0, 1], [-1, 0], [0.1, 0.9]])
    table = torch.randn(4, 3)
    task = make_task(base, donor, table, donor_table=theirs)
    torch.testing.assert_close(make("nearest", task).rows[0], table[2], rtol=0, atol=1e-6)
    both = make("nearest", task, k=2).rows[0]
    torch.testing.assert_close(both, (table[1] + table[2]) / 2, rtol=0, atol=1e-6)


def test_ids_that_no_token_has_get_the_mean_of_the_others(tmp_path):
    model = write_model(tmp_path / "model", dtype="F32")
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho"), padding=3, seed=1, dtype="F32")
    made = transplant(model, donor, tmp_path / "out")[EMBEDDING]
    assert len(made) == len(LETTERS) + 5
    mean = made[:-3].double().mean(0).float()
    torch.testing.assert_close(made[-3:], mean.expand(3, -1), rtol=0, atol=1e-6)
    zeros = transplant(model, donor, tmp_path / "zero", "subword", "junk=zero")[EMBEDDING]
    assert not zeros[-3:].any()


def test_rows_are_as_many_as_a_multiple_asks_for(tmp_path):
    model = write_model(tmp_path / "model")
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho"), seed=1)
    made = transplant(model, donor, tmp_path / "out", "subword", "pad_to_multiple_of=16")
    assert len(made[EMBEDDING]) == len(made[HEAD]) == 32
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 32


def test_ids_of_special_tokens_are_the_donors_or_null(tmp_path):
    model = write_model(tmp_path / "model")
    edit_json(model / "config.json", bos_token_id=3, eos_token_id=[0, 5], pad_token_id=7)
    donor = write_model(tmp_path / "donor", ("ho", *LETTERS), seed=1)
    edit_json(donor / "config.json", bos_token_id=1, eos_token_id=2)
    transplant(model, donor, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    said = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # Token 5 of the base is `e`, which is 6 in the donor.
    assert said == {"bos_token_id": 1, "eos_token_id": [2, 0, 6], "pad_token_id": None}


def test_the_tokenizer_is_the_donors_byte_for_byte(tmp_path):
    model = write_model(tmp_path / "model")
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho"), seed=1)
    transplant(model, donor, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (donor / name).read_bytes()


def test_a_tokenizer_alone_will_do_where_no_row_of_the_donor_is_needed(tmp_path):
    model = write_model(tmp_path / "model")
    words(tmp_path / "alone", (*LETTERS, "ho"))
    made = transplant(model, tmp_path / "alone", tmp_path / "out")
    assert len(made[EMBEDDING]) == len(LETTERS) + 2
    with pytest.raises(InputError, match="omp needs the donor's embedding"):
        transplant(model, tmp_path / "alone", tmp_path / "other", "omp")


def test_a_row_that_is_not_finite_is_refused(tmp_path):
    model = write_model(tmp_path / "model", dtype="F32")
    table = tensors(model)[EMBEDDING]
    table[1] = torch.nan
    set_tensor(model, EMBEDDING, table)
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho"), seed=1)
    with pytest.raises(InputError, match=r"the row of token 1 \(a\) is not finite"):
        transplant(model, donor, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_as_long_as_the_vocabulary_that_is_no_table_is_refused(tmp_path):
    model = write_model(tmp_path / "model")
    set_tensor(model, "model.extra_embedding.weight", torch.zeros(len(WORDS) + 1, 4))
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho"), seed=1)
    with pytest.raises(InputError, match="as long as the vocabulary"):
        transplant(model, donor, tmp_path / "out")


def test_the_report_counts_every_row_once(tmp_path):
    model = write_model(tmp_path / "model")
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho", "▁sings"), padding=2, seed=1)
    transplant(model, donor, tmp_path / "out", "omp", "k=4")
    said = report(tmp_path / "out")
    for table in said["tables"]:
        assert table["rows"] == {
            "role": 1,
            "exact": 26,
            "approximated": 2,
            "special_fallback": 0,
            "junk": 2,
        }
        assert {one["token"] for one in table["worst"]} == {"ho", " sings"}
        assert 0 < table["residuals"]["0.5"] < 1


def test_blocks_change_nothing(tmp_path, monkeypatch):
    model = write_model(tmp_path / "model")
    more = [a + b for a in "abcdefgh" for b in "qrstuvw"]
    donor = write_model(tmp_path / "donor", (*LETTERS, *more), seed=1)
    whole = transplant(model, donor, tmp_path / "whole", "normal")
    monkeypatch.setattr("mergepipe.transplant.making._BLOCK", 7)
    monkeypatch.setattr("mergepipe.transplant.making._ELEMENTS", 300)
    cut = transplant(model, donor, tmp_path / "cut", "normal")
    assert all(cut[name].equal(value) for name, value in whole.items())


@pytest.mark.parametrize("name", ["glass_en", "gpt2", "bert", "t5", "llama2", "smollm2"])
def test_every_token_is_spelled_by_itself(name):
    vocabulary = read_vocabulary(tokenizer(name), name)
    segment = segmenter(vocabulary)
    ordinary = [one for one in vocabulary.tokens.values() if one.kind != "special" and one.bytes]
    for one in ordinary[:: max(1, len(ordinary) // 500)]:
        spelled = segment(one.bytes)
        said = b"".join(vocabulary.tokens[number].bytes for number in spelled)
        assert said == one.bytes or (vocabulary.is_lossy and spelled), one


def test_part_of_a_character_is_spelled_by_bytes():
    vocabulary = read_vocabulary(tokenizer("llama2"), "llama2")
    ids = segmenter(vocabulary)("é".encode()[:1])
    assert [vocabulary.tokens[number].text for number in ids] == ["<0xC3>"]


def test_a_token_inside_a_word_is_spelled_without_a_space_before():
    vocabulary = read_vocabulary(tokenizer("llama2"), "llama2")
    texts = [vocabulary.tokens[n].text for n in segmenter(vocabulary)(b"ization")]
    assert texts == ["ization"]
    assert [vocabulary.tokens[n].text for n in segmenter(vocabulary)(b" the")] == ["▁the"]


def test_real_tables_are_made_of_real_pieces():
    task = glass_task()
    made = make("subword", task)
    assert isinstance(task.base, Rows)
    assert made.rows.shape == (len(task.missing), 128)
    norms = made.rows.norm(dim=1)
    assert 0.2 < float(norms.median()) < float(task.base.values.norm(dim=1).median())


def test_a_model_in_two_shards_is_read_as_one(tmp_path):
    model = write_model(tmp_path / "model", shards=2)
    donor = write_model(tmp_path / "donor", (*LETTERS, "ho"), seed=1)
    made = transplant(model, donor, tmp_path / "out")
    parts = [load_file(path) for path in sorted(model.glob("*.safetensors"))]
    before = {name: value for part in parts for name, value in part.items()}
    assert made["model.norm.weight"].equal(before["model.norm.weight"])
