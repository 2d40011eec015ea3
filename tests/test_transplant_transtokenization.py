"""Trans-tokenization: rows from what an aligner counted."""

from __future__ import annotations

import pytest
import torch
from transplant_cases import glass_task, make, make_task, row_of, weights_of, words

from mergepipe.errors import InputError
from mergepipe.transplants.transtokenization import inherited, relatives

TABLE = torch.arange(15.0).reshape(5, 3)


@pytest.fixture
def task(tmp_path):
    base = words(tmp_path / "base", ["▁dog", "▁house", "s", "x"])
    donor = words(tmp_path / "donor", ["▁Hund", "▁Hundehaus", "▁Hu", "▁leer", "haus", "x"])
    return make_task(base, donor, TABLE)


def counts(task, tmp_path, *lines, **settings):
    path = tmp_path / "counts.tsv"
    path.write_text("\n".join("\t".join(map(str, line)) for line in lines), encoding="utf-8")
    return make("transtokenization", task, counts="counts.tsv", base_dir=tmp_path, **settings)


def test_a_row_is_the_mean_of_its_translations_by_count(task, tmp_path):
    lines = [("▁Hund", "▁dog", 30), ("▁Hund", "s", 60), ("▁Hund", "▁dog", 30)]
    made = counts(task, tmp_path, *lines)
    assert weights_of(task, made, "▁Hund") == {"▁dog": 0.5, "s": 0.5}
    torch.testing.assert_close(row_of(task, made, "▁Hund"), (TABLE[1] + TABLE[3]) / 2)


def test_pairs_seen_too_rarely_do_not_count(task, tmp_path):
    lines = [("▁Hund", "▁dog", 30), ("▁Hund", "s", 9)]
    assert weights_of(task, counts(task, tmp_path, *lines), "▁Hund") == {"▁dog": 1.0}
    made = counts(task, tmp_path, *lines, min_count=0.0)
    assert weights_of(task, made, "▁Hund") == pytest.approx({"▁dog": 30 / 39, "s": 9 / 39})


def test_the_size_of_the_corpus_does_not_matter(task, tmp_path):
    lines = [("▁Hund", "▁dog", 30), ("▁Hund", "s", 15)]
    larger = [(*pair, 7 * count) for *pair, count in lines]
    one = row_of(task, counts(task, tmp_path, *lines), "▁Hund")
    assert torch.equal(one, row_of(task, counts(task, tmp_path, *larger), "▁Hund"))


def test_a_token_without_counts_takes_its_relatives_with_words_starts_twice(task, tmp_path):
    lines = [("▁Hund", "▁dog", 30), ("haus", "▁house", 10), ("haus", "s", 10)]
    made = counts(task, tmp_path, *lines)
    # inside: ▁Hund (▁dog twice) and haus (half ▁house twice, half s): 2 + 1 + 0.5
    expected = {"▁dog": 2 / 3.5, "▁house": 1 / 3.5, "s": 0.5 / 3.5}
    assert weights_of(task, made, "▁Hundehaus") == pytest.approx(expected)
    assert weights_of(task, made, "▁Hu") == {"▁dog": 1.0}  # ▁Hund starts with it


def test_what_is_left_gets_the_unknown_tokens_row_or_a_fallback(task, tmp_path):
    made = counts(task, tmp_path, ("▁Hund", "▁dog", 30))
    torch.testing.assert_close(row_of(task, made, "▁leer"), TABLE[0])
    made = counts(task, tmp_path, ("▁Hund", "▁dog", 30), fallback="mean", relatives=False)
    for text in ("▁leer", "▁Hu"):
        torch.testing.assert_close(row_of(task, made, text), TABLE[1:].mean(0))


def test_relatives_are_longest_first_and_none_lies_in_another():
    known = sorted([b"ab", b"abc", b"bc", b"c", b"d", b"abcdx", b"abce"])
    assert relatives(b"abcd", known) == [b"abcdx", b"abc", b"d"]
    assert relatives(b"cc", known) == [b"c"]
    assert relatives(b"zz", known) == []


def test_what_is_inherited_adds_up_to_one():
    assert inherited([{1: 1.0}, {2: 0.5, 1: 0.5}], {1}) == pytest.approx({1: 3 / 3.5, 2: 0.5 / 3.5})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("▁Hund\tdog\t3", r"counts\.tsv:1: 'dog' is no token of base; did you mean '▁dog'"),
        ("Katze\t▁dog\t3", r"counts\.tsv:1: 'Katze' is no token of donor"),
        ("▁Hund\t▁dog\tmany", r"counts\.tsv:1: 'many' is no count"),
        ("▁Hund\t▁dog\t-1", r"counts\.tsv:1: '-1' is no count"),
        ("▁Hund\t▁dog\tnan", r"counts\.tsv:1: 'nan' is no count"),
        ("▁Hund ▁dog 3", r"counts\.tsv:1: 1 columns"),
    ],
)
def test_faulty_lines_are_named(task, tmp_path, line, told):
    with pytest.raises(InputError, match=told):
        counts(task, tmp_path, line.split("\t"))


def test_real_vocabularies_get_rows_from_few_counts(tmp_path):
    task = glass_task()
    made = counts(task, tmp_path, ("▁que", "▁that", 50), ("▁que", "▁what", 50))
    assert weights_of(task, made, "▁que") == {"▁that": 0.5, "▁what": 0.5}
    assert made.rows.isfinite().all()
    table = task.base.values
    torch.testing.assert_close(
        row_of(task, made, "▁que"),
        (table[task.match.base.ids["▁that"]] + table[task.match.base.ids["▁what"]]) / 2,
    )
