"""Files of word vectors: every fault is named by its line."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from transplant_cases import words, write_vectors

from mergepipe.errors import InputError
from mergepipe.transplant.token_vectors import token_vectors
from mergepipe.transplant.vectors import read_vectors

CPU = torch.device("cpu")


def test_text_is_read_with_and_without_its_header_and_compressed(tmp_path):
    path = write_vectors(tmp_path / "a.vec", {"cat": [1, 2.5], "dög": [0, -1]})
    bare = tmp_path / "b.txt"
    bare.write_text("cat 1 2.5 \ndög 0 -1\n\n", encoding="utf-8")
    packed = tmp_path / "c.vec.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, bare, packed):
        found = read_vectors(file, CPU)
        assert found.words == ("cat", "dög")
        assert found.table.tolist() == [[1, 2.5], [0, -1]]


def test_only_so_many_words_are_read_as_asked_for(tmp_path):
    path = write_vectors(tmp_path / "a.vec", {"a": [1, 2], "b": [3, 4], "c": [5, 6]})
    assert read_vectors(path, CPU, 2).words == ("a", "b")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a 1 2\nb 1\n", r"v\.txt:2: no word with its vector"),
        ("a 1 2\nb 1 x\n", r"v\.txt:2: no word with its vector"),
        ("a 1 2\n\x00 nan 1\n", "NaN or infinite"),
        ("3 2\n", "holds no words"),
        ("", "holds no words"),
    ],
)
def test_faulty_lines_are_named(tmp_path, text, told):
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises(InputError, match=told):
        read_vectors(tmp_path / "v.txt", CPU)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "v.txt").write_bytes(b"a 1 2\n\xff\xfe 1 2\n")
    with pytest.raises(InputError, match=r"v\.txt:2"):
        read_vectors(tmp_path / "v.txt", CPU)


def test_arrays_carry_counts_which_weigh_the_words_of_a_token(tmp_path):
    vectors = np.array([[1.0, 0], [0, 1], [8, 8]])
    named = np.array(["catty", "cats", "dog"])
    np.savez(tmp_path / "v.npz", words=named, vectors=vectors, counts=np.array([3, 1, 5]))
    vocabulary = words(tmp_path / "t", ["cat", "ty", "s", "▁", "dog", "zz"])
    ids = np.array([vocabulary.ids[text] for text in ("cat", "s", "dog", "zz")])
    found = token_vectors(vocabulary, ids, read_vectors(tmp_path / "v.npz", CPU))
    assert found.tolist() == [[0.75, 0.25], [0, 1], [8, 8], [0, 0]]


@pytest.mark.parametrize(
    "arrays",
    [
        {"words": np.array(["a"])},
        {"words": np.array(["a"]), "vectors": np.zeros((2, 3))},
        {"words": np.array(["a"]), "vectors": np.zeros((1, 3)), "counts": np.array([-1])},
        {"words": np.array(["a"], object), "vectors": np.zeros((1, 3))},
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(InputError, match=r"v\.npz"):
        read_vectors(tmp_path / "v.npz", CPU)


def test_a_fasttext_model_has_vectors_for_words_it_never_saw(tmp_path):
    fasttext = pytest.importorskip("gensim.models.fasttext")
    sentences = [["window", "door"], ["windows", "doors"]] * 20
    model = fasttext.FastText(sentences, vector_size=8, min_count=1, epochs=2, seed=1, workers=1)
    fasttext.save_facebook_model(model, str(tmp_path / "m.bin"))
    found = read_vectors(tmp_path / "m.bin", CPU)
    assert set(found.words) == {"window", "door", "windows", "doors"}
    vocabulary = words(tmp_path / "t", ["▁windo", "<0x82>"])
    ids = np.array([vocabulary.ids["▁windo"], vocabulary.ids["<0x82>"]])
    rows = token_vectors(vocabulary, ids, found)
    expected = torch.from_numpy(model.wv.get_vector("windo").copy())
    torch.testing.assert_close(rows[0], expected, atol=1e-6, rtol=1e-6)
    assert not rows[1].any()


def test_a_file_that_is_no_fasttext_model_is_refused(tmp_path):
    pytest.importorskip("gensim")
    (tmp_path / "m.bin").write_bytes(b"nothing of that kind" * 20)
    with pytest.raises(InputError, match=r"m\.bin"):
        read_vectors(tmp_path / "m.bin", CPU)
