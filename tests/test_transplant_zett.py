"""ZeTT: a tiny hypernetwork of random weights, against its equations written out per token."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import RobertaConfig, RobertaModel
from transplant_cases import Rows, make, make_task, row_of, words

from mergepipe.errors import InputError
from mergepipe.transplant.hypernetwork import load_hypernetwork
from mergepipe.transplants.zett import surface_form

COLUMNS, HIDDEN, INNER, LENGTH = 6, 8, 12, 4
PIECES = ["<pad>", "a", "b", "ab", "Ġ", "Ã", "©", "z", "<special>"]
ORIGINAL = 5  # ids from here on are the hypernetwork's own
CPU = torch.device("cpu")


def hypernetwork(folder, **changes):
    """Write a hypernetwork of random weights."""
    folder.mkdir()
    config = {
        "n_embd": COLUMNS,
        "hn_hidden_size": HIDDEN,
        "hn_intermediate_size": INNER,
        "hn_n_layers": 2,
        "hn_num_attention_heads": 2,
        "hn_surface_maxlen": LENGTH,
        "hn_model_type": "roberta",
        "hn_rescale_embeddings": True,
        "original_vocab_size": ORIGINAL,
        "pad_token_id": 0,
        "separate_out_embeddings": False,
        "hn_single_head": False,
        "hn_embed_lang_id": False,
    } | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(config), folder / "model.safetensors")
    made = Tokenizer(models.BPE({p: n for n, p in enumerate(PIECES)}, [("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(folder / "tokenizer.json"))
    return folder


def tensors(config):
    torch.manual_seed(3)
    head = config["separate_out_embeddings"]
    width = 2 * COLUMNS if head else COLUMNS
    out = width if config["hn_single_head"] else COLUMNS
    encoder = RobertaModel(
        RobertaConfig(vocab_size=2, hidden_size=HIDDEN, num_hidden_layers=config["hn_n_layers"],
                      num_attention_heads=2, intermediate_size=INNER, max_position_embeddings=9,
                      type_vocab_size=1, pad_token_id=0, layer_norm_eps=1e-5),
        add_pooling_layer=False,
    )  # fmt: skip
    made = {f"model.{n}": torch.randn_like(t) * 0.3 for n, t in encoder.named_parameters()}
    made["fallback_embeddings.weight"] = torch.randn(len(PIECES) - ORIGINAL, width)
    states = LENGTH * HIDDEN if config.get("hn_concat_last_hidden_state") else HIDDEN
    assert states == HIDDEN
    linear(made, "input_projection.0", width, HIDDEN)
    block(made, "input_projection.1")
    for name in ["output_projection"] + ["output_projection_out"] * head:
        block(made, f"{name}.0")
        linear(made, f"{name}.1", HIDDEN, out if name == "output_projection" else COLUMNS)
    for name, size in (("in_scaler", width), ("scaler", COLUMNS), ("out_scaler", COLUMNS)):
        made |= {f"{name}.w": torch.rand(1, size) + 0.5, f"{name}.b": torch.randn(1, size)}
    if config["hn_embed_lang_id"]:
        made["lang_embeddings.weight"] = torch.randn(3, HIDDEN)
    return made


def linear(made, name, rows, columns):
    made[f"{name}.weight"] = torch.randn(columns, rows) * 0.5
    made[f"{name}.bias"] = torch.randn(columns)


def block(made, name):
    linear(made, f"{name}.dense1", HIDDEN, INNER)
    linear(made, f"{name}.dense2", INNER, HIDDEN)
    made |= {f"{name}.ln.weight": torch.randn(HIDDEN), f"{name}.ln.bias": torch.randn(HIDDEN)}


def by_hand(t, ids, table, *, head=False, single=False, language=None):
    """One token, unpadded, every equation written out."""

    def dense(name, x):
        return t[f"{name}.weight"] @ x + t[f"{name}.bias"]

    def norm(name, x, eps):
        x = (x - x.mean()) / (x.var(unbiased=False) + eps).sqrt()
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    def residual(name, x):
        h = functional.gelu(dense(f"{name}.dense1", x), approximate="tanh")
        h = functional.gelu(dense(f"{name}.dense2", h), approximate="tanh")
        return norm(f"{name}.ln", h + x, 1e-6)

    def project(name, x):
        return dense(f"{name}.1", residual(f"{name}.0", x))

    states = []
    for place, one in enumerate(ids):
        x = table[one] * t["in_scaler.w"][0] + t["in_scaler.b"][0] if one < ORIGINAL else (
            t["fallback_embeddings.weight"][one - ORIGINAL]
        )  # fmt: skip
        x = residual("input_projection.1", dense("input_projection.0", x))
        states.append(x + t["model.embeddings.position_embeddings.weight"][place])
    kind = t["model.embeddings.token_type_embeddings.weight"][0]
    states = [x + kind for x in states]
    if language is not None:  # neither position nor type
        states.append(t["lang_embeddings.weight"][language])
    states = [norm("model.embeddings.LayerNorm", x, 1e-5) for x in states]
    for layer in range(2):
        states = encoder_layer(f"model.encoder.layer.{layer}.", states, dense, norm)
    made = project("output_projection", states[0])
    out = project("output_projection_out", states[0]) if head and not single else None
    if single and head:
        made, out = made[:COLUMNS], made[COLUMNS:]
    made = made * t["scaler.w"][0] + t["scaler.b"][0]
    return made, None if out is None else out * t["out_scaler.w"][0] + t["out_scaler.b"][0]


def encoder_layer(name, states, dense, norm):
    own = f"{name}attention.self."
    q, k, v = ([dense(own + part, x) for x in states] for part in ("query", "key", "value"))
    half, mixed = HIDDEN // 2, []
    for query in q:
        heads = []
        for start in (0, half):
            cut = slice(start, start + half)
            scores = torch.stack([query[cut] @ key[cut] for key in k]) / math.sqrt(half)
            heads.append(sum(w * x[cut] for w, x in zip(scores.softmax(0), v, strict=True)))
        mixed.append(torch.cat(heads))
    after = [norm(f"{name}attention.output.LayerNorm", x + dense(f"{name}attention.output.dense", m), 1e-5)
             for x, m in zip(states, mixed, strict=True)]  # fmt: skip
    inner = [functional.gelu(dense(f"{name}intermediate.dense", x)) for x in after]
    return [norm(f"{name}output.LayerNorm", x + dense(f"{name}output.dense", h), 1e-5)
            for x, h in zip(after, inner, strict=True)]  # fmt: skip


@pytest.fixture
def task(tmp_path):
    return a_task(tmp_path)


def a_task(tmp_path, **more):
    base = words(tmp_path / "base", ["p", "q", "r", "s"])
    donor = words(tmp_path / "donor", ["aba", "▁z", "é", "ababababab"])
    return make_task(base, donor, torch.randn(5, COLUMNS), **more)


# Donor token -> its pieces under the hypernetwork's tokenizer, cut at four.
FORMS = {"aba": [3, 1], "▁z": [4, 7], "é": [5, 6], "ababababab": [3, 3, 3, 3]}


def test_tokens_are_split_by_the_networks_own_tokenizer(task, tmp_path):
    network = load_hypernetwork(hypernetwork(tmp_path / "hn"), CPU)
    from mergepipe.transplants.zett import _bytes_spelled

    donor = task.match.donor
    found = {
        text: surface_form(network, donor.tokens[donor.ids[text]], _bytes_spelled())
        for text in FORMS
    }
    assert found == FORMS


def test_rows_are_those_of_the_equations_per_token(task, tmp_path):
    folder = hypernetwork(tmp_path / "hn")
    made = make("zett", task, hypernetwork="hn", base_dir=tmp_path)
    stored = load_hypernetwork(folder, CPU).tensors
    for text, ids in FORMS.items():
        expected, _ = by_hand(stored, ids, task.base.values)
        torch.testing.assert_close(row_of(task, made, text), expected, atol=2e-5, rtol=2e-5)
    assert made.ids is None


@pytest.mark.parametrize("single", [False, True])
def test_a_head_of_its_own_is_read_and_predicted(tmp_path, single):
    folder = hypernetwork(tmp_path / "hn", separate_out_embeddings=True, hn_single_head=single)
    stored = load_hypernetwork(folder, CPU).tensors
    head = torch.randn(5, COLUMNS)
    task = a_task(tmp_path, other=Rows(head))
    joined = torch.cat([task.base.values, head], 1)
    swapped = make_task(task.match.base, task.match.donor, head, other=task.base, side="output")
    made = [make("zett", one, hypernetwork=str(folder)) for one in (task, swapped)]
    for text, ids in FORMS.items():
        expected = by_hand(stored, ids, joined, head=True, single=single)
        for one, rows in zip(made, expected, strict=True):
            torch.testing.assert_close(row_of(task, one, text), rows, atol=2e-5, rtol=2e-5)


def test_a_language_stands_behind_the_pieces(task, tmp_path):
    folder = hypernetwork(tmp_path / "hn", hn_embed_lang_id=True)
    stored = load_hypernetwork(folder, CPU).tensors
    made = make("zett", task, hypernetwork=str(folder), language=2)
    expected, _ = by_hand(stored, FORMS["▁z"], task.base.values, language=2)
    torch.testing.assert_close(row_of(task, made, "▁z"), expected, atol=2e-5, rtol=2e-5)
    for language in (None, 3):
        with pytest.raises(InputError, match="asks for a `language` from 0 to 2"):
            make("zett", task, hypernetwork=str(folder), language=language)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", r"no config\.json \(name the folder of a ZeTT"),
        ("model.safetensors", r"no \*\.safetensors \(convert its weights"),
        ("tokenizer.json", r"no tokenizer\.json \(put the hypernetwork's own"),
    ],
)
def test_a_missing_file_is_told(task, tmp_path, name, told):
    (hypernetwork(tmp_path / "hn") / name).unlink()
    with pytest.raises(InputError, match=told):
        make("zett", task, hypernetwork=str(tmp_path / "hn"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hn_model_type": "t5"}, "hn_model_type: t5 is not supported"),
        ({"hn_embed_target_priors": True}, "hn_embed_target_priors: True is not supported"),
        ({"n_embd": COLUMNS + 1}, "predicts 7 dimensions, and the base has 6"),
        ({"separate_out_embeddings": True}, "is for a base with a head of its own"),
        ({"original_vocab_size": 6}, "reads 6 rows, and the base has 5"),
    ],
)
def test_a_network_for_another_base_is_refused(task, tmp_path, changes, told):
    folder = hypernetwork(tmp_path / "hn", **changes)
    with pytest.raises(InputError, match=told):
        make("zett", task, hypernetwork=str(folder))


def test_weights_that_lack_a_tensor_are_refused(task, tmp_path):
    folder = hypernetwork(tmp_path / "hn")
    stored = tensors(json.loads((folder / "config.json").read_text()))
    del stored["model.encoder.layer.0.output.dense.weight"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"layer\.0\.output\.dense\.weight"):
        make("zett", task, hypernetwork=str(folder))
