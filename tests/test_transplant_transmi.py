"""TransMI: a Unigram vocabulary extended by its transliterations."""

from __future__ import annotations

import json

import pytest
import torch
from command_line import command
from material import tokenizer
from tokenizers import Tokenizer
from transplant_cases import make, make_task, row_of, unigram, weights_of

from mergepipe.errors import InputError
from mergepipe.tokenizer.reading import read_vocabulary
from mergepipe.transplant.transliteration import extended, sources, transliterator, write_extended

# The letters' names; я and йа have the same.
LETTERS = "да\tda\nнет\tnet\nя\tya\nйа\tya\nъ\t\nи\ti\n"
PIECES = {"▁да": -2.0, "▁я": -5.0, "▁йа": -3.0, "▁нет": -4.0, "ъ": -6.0, "i": -1.0, "и": -7.0}
TABLE = torch.arange(24.0).reshape(8, 3)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "letters.tsv"
    path.write_text(LETTERS, encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path):
    return unigram(tmp_path / "base", PIECES)


def extend(base, table, out, merge="max"):
    assert write_extended(base.folder, out, transliterator(table), merge) == 3
    return read_vocabulary(out, "donor")


def test_old_pieces_stay_and_new_ones_follow_the_likeliest_first(base, table):
    made = extended(base.stored, transliterator(table))
    old = base.stored["model"]["vocab"]
    assert made["model"]["vocab"][: len(old)] == old
    assert made["model"]["vocab"][len(old) :] == [["▁da", -2.0], ["▁ya", -3.0], ["▁net", -4.0]]


@pytest.mark.parametrize(("merge", "score"), [("max", -3.0), ("min", -5.0), ("average", -4.0)])
def test_an_ambiguous_piece_gets_the_score_of_its_mode(base, table, merge, score):
    made = extended(base.stored, transliterator(table), merge)
    assert dict(map(tuple, made["model"]["vocab"]))["▁ya"] == score


@pytest.mark.parametrize(
    ("merge", "expected"),
    [("max", {"▁йа": 1.0}), ("min", {"▁я": 1.0}), ("average", {"▁я": 0.5, "▁йа": 0.5})],
)
def test_a_new_row_is_that_of_its_source(base, table, tmp_path, merge, expected):
    task = make_task(base, extend(base, table, tmp_path / "out", merge), TABLE)
    made = make("transmi", task, table=str(table), merge=merge)
    assert weights_of(task, made, "▁ya") == expected
    torch.testing.assert_close(row_of(task, made, "▁da"), TABLE[1])
    mean = sum(TABLE[base.ids[text]] * share for text, share in expected.items())
    torch.testing.assert_close(row_of(task, made, "▁ya"), mean)


def test_every_old_token_keeps_its_id_and_is_not_made_anew(base, table, tmp_path):
    donor = extend(base, table, tmp_path / "out")
    task = make_task(base, donor, TABLE)
    assert all(task.match.ids[number] == number for number in base.tokens)
    assert task.missing.tolist() == [8, 9, 10]


def test_the_extended_tokenizer_reads_both_scripts(base, table, tmp_path):
    extend(base, table, tmp_path / "out")
    made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert made.encode(" да я").tokens == ["▁да", "▁я"]
    assert made.encode(" da ya").tokens == ["▁da", "▁ya"]


def test_what_transliterates_to_nothing_or_to_itself_adds_nothing(base, table):
    found = sources(base.stored, transliterator(table))
    assert found == {"▁da": [1], "▁ya": [2, 3], "▁net": [4], "i": [7]}


def test_added_tokens_behind_the_pieces_keep_their_ids(base, table):
    stored = json.loads(json.dumps(base.stored))
    mask = {**stored["added_tokens"][0], "id": 8, "content": "<mask>"}
    stored["added_tokens"].append(mask)
    made = extended(stored, transliterator(table))
    assert made["model"]["vocab"][8] == ["<mask>", 0.0]
    loaded = Tokenizer.from_str(json.dumps(made))
    assert loaded.token_to_id("<mask>") == 8
    assert loaded.token_to_id("▁da") == 9


def test_added_tokens_that_leave_a_gap_are_refused(base, table):
    stored = json.loads(json.dumps(base.stored))
    stored["added_tokens"].append({**stored["added_tokens"][0], "id": 20, "content": "<mask>"})
    with pytest.raises(InputError, match="no token has id 8, and a later one has 20"):
        extended(stored, transliterator(table))


def test_other_kinds_of_tokenizer_are_refused(table):
    stored = json.loads((tokenizer("glass_en") / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match="needs a Unigram tokenizer, and this is BPE"):
        sources(stored, transliterator(table))


def test_a_folder_that_is_there_is_not_overwritten(base, table, tmp_path):
    with pytest.raises(InputError, match="is there already"):
        write_extended(base.folder, tmp_path, transliterator(table))


def test_the_command_makes_the_tokenizer_that_the_method_needs(base, table, tmp_path, capsys):
    words = ("tokens", "transliterate", base.folder, "--out", tmp_path / "out")
    said = command(capsys, *words, "--table", table)
    assert said.status == 0, said.err
    assert "out: 3 new tokens" in said.out
    again = command(capsys, *words, "--table", table)
    assert (again.status, "is there already" in again.err) == (2, True)
    gone = command(capsys, *words, "--table", tmp_path / "none.tsv")
    assert (gone.status, "there is no such file" in gone.err) == (2, True)


def test_faulty_lines_of_a_table_are_named(tmp_path):
    (tmp_path / "t.tsv").write_text("a\tb\nc\n")
    with pytest.raises(InputError, match=r"t\.tsv:2: 1 columns"):
        transliterator(tmp_path / "t.tsv")


def test_uroman_transliterates_without_a_table(base):
    pytest.importorskip("uroman")
    assert sources(base.stored, transliterator(None))["▁net"] == [4]


def test_a_real_unigram_tokenizer_is_extended_and_segments_as_before(tmp_path):
    stored = json.loads((tokenizer("t5") / "tokenizer.json").read_bytes())
    table = tmp_path / "t.tsv"
    table.write_text("ä\tae\nö\toe\nü\tue\nß\tss\né\te\n", encoding="utf-8")
    made = extended(stored, transliterator(table))
    old = Tokenizer.from_str(json.dumps(stored))
    new = Tokenizer.from_str(json.dumps(made))
    assert new.get_vocab_size() > old.get_vocab_size() + 300
    text = "Die schöne Straße führt über eine Brücke."
    assert new.encode(text).ids == old.encode(text).ids
    plain = "Die schoene Strasse fuehrt ueber eine Bruecke."
    assert len(new.encode(plain).ids) < len(old.encode(plain).ids)
