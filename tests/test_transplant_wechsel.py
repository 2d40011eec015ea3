"""WECHSEL: words of two languages in one space, and a softmax of the similarity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from transplant_cases import glass_task, make, make_task, row_of, weights_of, words, write_vectors

from mergepipe.errors import InputError
from mergepipe.transplant.nearest import nearest, unit
from mergepipe.transplants.wechsel import rotation


@pytest.fixture
def task(tmp_path):
    base = words(tmp_path / "base", ["▁cat", "▁dog", "▁sun"])
    donor = words(tmp_path / "donor", ["▁Katze", "▁Hund", "▁nichts"])
    return make_task(base, donor, torch.arange(12.0).reshape(4, 3))


@pytest.fixture
def files(tmp_path):
    ours = {"cat": [1, 0], "dog": [0, 1], "sun": [-1, 0]}
    theirs = {"Katze": [2, 0], "Hund": [3, 3]}
    return {
        "base_vectors": str(write_vectors(tmp_path / "en.vec", ours)),
        "donor_vectors": str(write_vectors(tmp_path / "de.vec", theirs)),
    }


def test_a_row_is_the_softmax_mix_of_the_nearest_base_rows(task, files):
    made = make("wechsel", task, **files, neighbours=2, temperature=0.5)
    odds = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + math.exp(0))
    assert weights_of(task, made, "▁Katze") == pytest.approx({"▁cat": odds, "▁dog": 1 - odds})
    expected = odds * task.base.values[1] + (1 - odds) * task.base.values[2]
    torch.testing.assert_close(row_of(task, made, "▁Katze"), expected)
    assert weights_of(task, made, "▁Hund") == pytest.approx({"▁cat": 0.5, "▁dog": 0.5})


def test_both_tables_of_a_model_get_the_same_weights(task, files):
    made = [make("wechsel", task_of, **files) for task_of in (task, other_side(task))]
    assert torch.equal(made[0].ids[:2], made[1].ids[:2])
    assert torch.equal(made[0].weights[:2], made[1].weights[:2])


def other_side(task):
    made = make_task(task.match.base, task.match.donor, torch.randn(4, 5), side="output")
    assert made.base.columns != task.base.columns
    return made


def test_a_dictionary_turns_the_space_as_scipy_does(task, tmp_path):
    turn = torch.tensor([[0.0, 1], [-1, 0]])
    ours = {"cat": [1, 0.2], "dog": [0.1, 1], "sun": [-1, 0.5]}
    turned = {w: (torch.tensor(v) @ turn).tolist() for w, v in ours.items()}
    theirs = {"Katze": turned["cat"], "Hund": turned["dog"], "Sonne": turned["sun"]}
    files = {
        "base_vectors": str(write_vectors(tmp_path / "en.vec", ours)),
        "donor_vectors": str(write_vectors(tmp_path / "de.vec", theirs)),
    }
    (tmp_path / "pairs.tsv").write_text("cat\tkatze\nDOG\tHUND\nSun\tSonne\nno\tnein\n")
    made = make("wechsel", task, **files, dictionary="pairs.tsv", base_dir=tmp_path, neighbours=1)
    torch.testing.assert_close(row_of(task, made, "▁Katze"), task.base.values[1])
    torch.testing.assert_close(row_of(task, made, "▁Hund"), task.base.values[2])


@given(st.integers(1, 8), st.integers(8, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_rotation_is_that_of_orthogonal_procrustes(size, pairs, seed):
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=(pairs, size)), draw.normal(size=(pairs, size))
    expected, _ = orthogonal_procrustes(x, y)
    found = rotation(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_vectors_of_more_dimensions_are_reduced_to_the_principal_ones(task, tmp_path):
    ours = {"cat": [1, 0, 0.0], "dog": [0, 1, 0.001], "sun": [-1, 0.5, 0]}
    theirs = {"Katze": [1, 0], "Hund": [0, 1], "Sonne": [-1, 0.5]}
    files = {
        "base_vectors": str(write_vectors(tmp_path / "en.vec", ours)),
        "donor_vectors": str(write_vectors(tmp_path / "de.vec", theirs)),
    }
    (tmp_path / "pairs.tsv").write_text("cat\tKatze\ndog\tHund\nsun\tSonne\n")
    settings = {**files, "dictionary": str(tmp_path / "pairs.tsv"), "neighbours": 1}
    made = make("wechsel", task, **settings)
    assert weights_of(task, made, "▁Hund") == {"▁dog": 1.0}
    del settings["dictionary"]
    with pytest.raises(InputError, match="3 dimensions, and the donor's vectors have 2"):
        make("wechsel", task, **settings)


def test_a_dictionary_that_names_no_known_word_is_refused(task, files, tmp_path):
    (tmp_path / "pairs.tsv").write_text("moon\tMond\n")
    with pytest.raises(InputError, match=r"pairs\.tsv: no pair of it"):
        make("wechsel", task, **files, dictionary=str(tmp_path / "pairs.tsv"))


def test_tokens_without_a_vector_are_drawn_by_seed_and_token(task, files):
    said = []
    told = make_task(task.match.base, task.match.donor, task.base.values, seed=1, tell=said.append)
    one, again, other = (make("wechsel", t, **files) for t in (task, task, told))
    assert torch.equal(row_of(task, one, "▁nichts"), row_of(task, again, "▁nichts"))
    assert not torch.equal(row_of(task, one, "▁nichts"), row_of(task, other, "▁nichts"))
    assert weights_of(task, one, "▁nichts") == {}
    assert said == ["1 of 3 tokens to be made have no vector"]


def test_the_mean_can_stand_in_for_tokens_without_a_vector(task, files):
    made = make("wechsel", task, **files, fallback="mean")
    torch.testing.assert_close(row_of(task, made, "▁nichts"), task.base.values[1:].mean(0))


def test_longer_vectors_change_nothing(task, files, tmp_path):
    longer = {"Katze": [20, 0], "Hund": [0.3, 0.3]}
    scaled = {**files, "donor_vectors": str(write_vectors(tmp_path / "long.vec", longer))}
    torch.testing.assert_close(
        make("wechsel", task, **files).rows, make("wechsel", task, **scaled).rows
    )


def test_rows_do_not_depend_on_what_is_asked_together(task, files):
    from mergepipe.transplant import load_transplant

    method = load_transplant("wechsel")
    fitted = method.fit(task, method.parameters.model_validate(files))
    whole = fitted(np.arange(3)).rows
    assert torch.equal(whole[[2, 0]], fitted(np.array([2, 0])).rows)


def test_of_equally_near_keys_the_first_counts():
    keys = unit(torch.tensor([[0.0, 1], [1, 0], [2, 0], [3, 0]]))
    values, index = nearest(unit(torch.tensor([[5.0, 0]])), keys, 2)
    assert index.tolist() == [[1, 2]]
    assert values.tolist() == [[1, 1]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_the_nearest_are_those_of_a_whole_stable_sort(seed, k):
    draw = torch.Generator().manual_seed(seed)
    keys = unit(torch.randint(-2, 3, (40, 3), generator=draw).float())
    queries = unit(torch.randint(-2, 3, (5, 3), generator=draw).float())
    whole = (queries.double() @ keys.double().T).float()
    values, order = whole.sort(dim=1, descending=True, stable=True)
    found = nearest(queries, keys, k)
    assert torch.equal(found[0], values[:, :k])
    assert torch.equal(found[1], order[:, :k])


def test_real_vocabularies_meet_in_the_space_of_a_static_table():
    from material import package

    folder = next(package("tokenlearn-static-model").rglob("model.safetensors")).parent
    task = glass_task()
    made = make("wechsel", task, donor_vectors=str(folder), base_vectors=str(folder))
    assert made.rows.isfinite().all()
    near = weights_of(task, made, "▁não")
    assert math.isclose(sum(near.values()), 1, abs_tol=1e-6)
    assert len(near) == 10
