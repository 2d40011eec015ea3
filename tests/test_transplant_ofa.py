"""OFA: words of many languages, and a factorised table."""

from __future__ import annotations

import pytest
import torch
from transplant_cases import (
    glass_table,
    glass_task,
    make,
    make_task,
    row_of,
    weights_of,
    words,
    write_vectors,
)

from mergepipe.errors import InputError
from mergepipe.transplants.ofa import forms

TABLE = torch.tensor([[9.0, 9, 9], [1, 0, 0], [0, 2, 0], [0, 0, 3], [1, 1, 1]])


@pytest.fixture
def task(tmp_path):
    base = words(tmp_path / "base", ["▁cat", "▁sun", "Dog", "x"])
    donor = words(tmp_path / "donor", ["▁Katze", "hund", "Hund", "q"])
    return make_task(base, donor, TABLE)


@pytest.fixture
def vectors(tmp_path):
    found = {"eng:cat": [1, 0], "eng:dog": [0, 1], "deu:katze": [1, 0], "deu:hund": [0, 3]}
    return str(write_vectors(tmp_path / "colex.vec", found))


def test_words_are_tried_small_and_capitalised_alone_and_after_a_space():
    assert forms("dog") == ("dog", " dog", "Dog", " Dog")


def test_capitalised_tokens_find_the_small_word(task, vectors):
    made = make("ofa", task, vectors=vectors, neighbours=1)
    assert weights_of(task, made, "Hund") == {"Dog": 1.0}
    assert weights_of(task, made, "▁Katze") == {"▁cat": 1.0}
    torch.testing.assert_close(row_of(task, made, "Hund"), TABLE[3])


def test_words_of_one_language_need_no_prefix(task, tmp_path):
    plain = write_vectors(tmp_path / "plain.vec", {"cat": [1, 0], "katze": [2, 0], "eng:x": [0, 1]})
    made = make("ofa", task, vectors=str(plain), languages=False, neighbours=1)
    assert weights_of(task, made, "▁Katze") == {"▁cat": 1.0}


def test_rows_of_a_factorised_table_are_coordinates_times_primitives(task, vectors):
    made = make("ofa", task, vectors=vectors, dimensions=2)
    whole = make("ofa", task, vectors=vectors)
    u, s, v = torch.linalg.svd(TABLE[1:], full_matrices=False)
    weights = torch.zeros(len(task.missing), 5)
    weights.scatter_add_(1, whole.ids.clamp(min=0), whole.weights)
    expected = weights[:, 1:] @ u[:, :2] @ torch.diag(s[:2]) @ v[:2]
    known = (whole.ids >= 0).any(1)
    assert known.tolist() == [True, True, True, False]
    torch.testing.assert_close(made.rows[known], expected[known])
    assert made.ids is None
    assert made.weights is None


def test_all_dimensions_are_as_good_as_no_factorisation(task, vectors):
    made = make("ofa", task, vectors=vectors, dimensions=3)
    torch.testing.assert_close(made.rows, make("ofa", task, vectors=vectors).rows)


def test_more_dimensions_than_there_are_is_an_error(task, vectors):
    with pytest.raises(InputError, match="`dimensions: 4` of the base's 3"):
        make("ofa", task, vectors=vectors, dimensions=4)


def test_a_real_table_of_rank_d_makes_rows_of_rank_d(tmp_path):
    task = glass_task()
    tokens = [task.match.donor.tokens[int(n)].bytes for n in task.missing]
    shared = [task.match.base.tokens[int(n)].bytes for n in task.anchors[:, 1]]
    named = sorted({text.decode().strip() for text in (*tokens, *shared)} - {""})
    draw = torch.Generator().manual_seed(0)
    table = {w: torch.randn(5, generator=draw).tolist() for w in named if " " not in w}
    path = write_vectors(tmp_path / "words.vec", table)
    made = make("ofa", task, vectors=str(path), languages=False, dimensions=20)
    assert int(torch.linalg.matrix_rank(made.rows, rtol=1e-4)) == 20
    assert made.rows.norm(dim=1).median() < glass_table("en").norm(dim=1).median()
