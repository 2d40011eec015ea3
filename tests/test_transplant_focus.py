"""FOCUS: a sparsemax over the tokens that both vocabularies have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transplant_cases import (
    glass_task,
    make,
    make_task,
    row_of,
    weights_of,
    words,
    write_vectors,
)

from mergepipe.errors import InputError
from mergepipe.transplant.sparsemax import sparsemax

TABLE = torch.arange(12.0).reshape(4, 3)


@pytest.fixture
def task(tmp_path):
    base = words(tmp_path / "base", ["a", "b", "c"])
    donor = words(tmp_path / "donor", ["b", "a", "new", "odd"])
    theirs = torch.tensor([[9.0, 9], [0, 2], [3, 0], [4, 3], [0, 0]])
    return make_task(base, donor, TABLE, donor_table=theirs)


def test_a_row_is_the_sparsemax_mix_of_shared_rows(task):
    # cos to a = 0.8, to b = 0.6: theta = (1.4 - 1) / 2
    made = make("focus", task)
    assert weights_of(task, made, "new") == pytest.approx({"a": 0.6, "b": 0.4})
    torch.testing.assert_close(row_of(task, made, "new"), 0.6 * TABLE[1] + 0.4 * TABLE[2])


def test_tokens_that_are_not_shared_have_no_part(task):
    assert "c" not in weights_of(task, make("focus", task), "new")


def test_a_token_without_a_vector_falls_back(task):
    made = make("focus", task, fallback="mean")
    assert weights_of(task, made, "odd") == {}
    torch.testing.assert_close(row_of(task, made, "odd"), TABLE[1:].mean(0))


def test_a_fallback_to_pieces_tells_their_weights(tmp_path):
    base = words(tmp_path / "base", ["a", "b"])
    donor = words(tmp_path / "donor", ["a", "aab"])
    task = make_task(base, donor, TABLE[:3], donor_table=torch.zeros(3, 2))
    made = make("focus", task, fallback="subword")
    assert weights_of(task, made, "aab") == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    torch.testing.assert_close(row_of(task, made, "aab"), (2 * TABLE[1] + TABLE[2]) / 3)


def test_words_give_their_tokens_vectors(task, tmp_path):
    vectors = {"a": [1, 0], "b": [0, 1], "new": [0, 2], "newb": [0, 4]}
    path = write_vectors(tmp_path / "words.vec", vectors)
    made = make("focus", task, vectors="words.vec", base_dir=path.parent)
    assert weights_of(task, made, "new") == {"b": 1.0}


def test_a_donor_without_a_table_must_come_with_vectors(task):
    bare = make_task(task.match.base, task.match.donor, TABLE)
    with pytest.raises(InputError, match="give `vectors` or `corpus`, or a donor model"):
        make("focus", bare)


def test_vectors_and_a_corpus_are_one_too_many(task, tmp_path):
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(ValueError, match="either `vectors` or `corpus`"):
        make("focus", task, vectors="x.txt", corpus="x.txt", base_dir=tmp_path)


def test_fasttext_is_trained_on_a_corpus_and_twice_the_same(tmp_path):
    pytest.importorskip("gensim")
    base = words(tmp_path / "base", ["▁hot", "▁cold", "▁tea", "▁ice"])
    donor = words(tmp_path / "donor", ["▁hot", "▁cold", "▁warm", "▁tea", "▁ice", "▁rare"])
    task = make_task(base, donor, torch.randn(5, 3))
    lines = [f" {one} tea" for one in ("hot", "warm")] + [" cold ice"]
    (tmp_path / "corpus.txt").write_text("\n".join(lines * 200), encoding="utf-8")
    settings = {"corpus": str(tmp_path / "corpus.txt"), "dimensions": 16, "fallback": "mean"}
    one, again = (make("focus", task, **settings) for _ in range(2))
    assert torch.equal(one.rows, again.rows)
    assert weights_of(task, one, "▁warm")
    assert weights_of(task, one, "▁rare") == {}


def test_a_corpus_too_short_for_any_token_is_refused(task, tmp_path):
    pytest.importorskip("gensim")
    (tmp_path / "corpus.txt").write_text("a b\n")
    with pytest.raises(InputError, match="no token occurs 10 times"):
        make("focus", task, corpus=str(tmp_path / "corpus.txt"))


def test_a_longer_donor_table_changes_nothing_in_real_vocabularies():
    task = glass_task()
    made = make("focus", task)
    theirs = task.donor.values * torch.linspace(0.5, 2, 1024)[:, None]
    scaled = make("focus", glass_task_with(task, theirs))
    torch.testing.assert_close(made.rows, scaled.rows, atol=1e-5, rtol=0)
    assert made.rows.isfinite().all()
    torch.testing.assert_close(made.weights.sum(1), torch.ones(len(made.rows)))


def glass_task_with(task, donor_table):
    return make_task(task.match.base, task.match.donor, task.base.values, donor_table=donor_table)


def test_a_donor_row_that_is_an_anchors_row_gives_that_anchors_weight_the_lead():
    task = glass_task()
    theirs = task.donor.values.clone()
    anchor, wanted = task.anchors[40], int(task.missing[7])
    theirs[wanted] = theirs[anchor[0]]
    made = make("focus", glass_task_with(task, theirs))
    assert made.ids[7, 0] == anchor[1]


def simplex_projection(scores):
    """The same by its definition, one row at a time."""
    z = np.sort(scores)[::-1]
    m = max(m for m in range(1, len(z) + 1) if 1 + m * z[m - 1] > z[:m].sum())
    return np.maximum(scores - (z[:m].sum() - 1) / m, 0)


@given(st.integers(1, 300), st.floats(0.001, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_sparsemax_is_the_projection_onto_the_simplex(size, spread, seed):
    scores = torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (3, size))).float()
    columns, weights = sparsemax(scores)
    for row in range(3):
        found = np.zeros(size)
        used = columns[row] >= 0
        found[columns[row][used].numpy()] = weights[row][used].numpy()
        np.testing.assert_allclose(
            found, simplex_projection(scores[row].double().numpy()), atol=1e-6
        )


def test_donor_ids_in_another_order_give_the_same_rows_in_that_order():
    task = glass_task()
    order = torch.randperm(len(task.missing), generator=torch.Generator().manual_seed(1)).numpy()
    shuffled = replace(task, missing=task.missing[order])
    one, other = make("focus", task), make("focus", shuffled)
    assert torch.equal(one.rows[torch.from_numpy(order)], other.rows)


def test_rows_told_as_weights_are_the_rows():
    task = glass_task()
    made = make("focus", task, fallback="mean")
    mixed = torch.einsum("nk,nkd->nd", made.weights, task.base.values[made.ids.clamp(min=0)])
    torch.testing.assert_close(mixed, made.rows, atol=1e-5, rtol=1e-4)
