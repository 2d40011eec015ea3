"""Scores through echo and logprobs of a real model behind a server are those of the model here."""

from __future__ import annotations

from pathlib import Path

import pytest
from api_server import scoring
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from mergepipe.errors import InputError
from mergepipe.model.api import api_model
from mergepipe.model.api_faults import ApiFault, ApiRefusal
from mergepipe.model.load import local_model

FOLDER = Path(__file__).parent.parent / "recipes" / "quickstart" / "base"
BOS = "<bos>"
TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "Der Fuchs überquert die Straße; größere Bären schlafen. 日本語 und 🦊🦊.",
    " 12+30=42\n7+8=15\n",
    "é",
    "",
]
PAIRS = [
    ("def add(a, b):\n    return", " a + b"),
    ("The sum is ", "42"),  # the space is scored with the continuation
    ("Die Straße", " ist größer 🦊"),
    ("", "Anfang"),
    ("日本", "語"),
    ("nothing follows", ""),
    ("import", " os\n"),
]


@pytest.fixture(scope="module")
def local():
    return local_model(FOLDER, "local")


@pytest.fixture(scope="module")
def loaded():
    module = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32").eval()
    return module, Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def asking(script, **options):
    host = script.url.split("/")[2]
    return api_model(script.url, "tiny", key_env=None, trusted_hosts=[host], **options)


def assert_same(ours, expected):
    assert [s.logprob for s in ours] == pytest.approx([s.logprob for s in expected], abs=1e-4)
    assert [(s.tokens, s.bytes, s.greedy) for s in ours] == [
        (s.tokens, s.bytes, s.greedy) for s in expected
    ]


@pytest.mark.parametrize("server", [{}, {"bos": BOS}])
def test_scores_are_those_of_the_model_here_whoever_puts_the_prefix(local, loaded, server):
    with scoring(*loaded, **server) as script:
        model = asking(script, prefix="" if server else BOS)
        assert model.abilities == {"generate", "loglikelihood", "rolling"}
        assert_same(model.loglikelihood(PAIRS), local.loglikelihood(PAIRS))
        assert_same(model.loglikelihood_rolling(TEXTS), local.loglikelihood_rolling(TEXTS))


def test_likeliest_continuations_are_found_to_be_so(local, loaded):
    with scoring(*loaded) as script:
        model = asking(script, prefix=BOS)
        written = model.generate(["def add(a, b):"], stop=[], max_tokens=6)[0].text
        assert written == local.generate(["def add(a, b):"], stop=[], max_tokens=6)[0].text
        likely, unlikely = model.loglikelihood(
            [("def add(a, b):", written), ("def add(a, b):", " zebra")]
        )
    assert (likely.greedy, unlikely.greedy) == (True, False)


@pytest.mark.parametrize("limit", [7, 16])
def test_long_texts_are_scored_in_the_windows_of_a_model_with_that_limit(loaded, limit):
    text = TEXTS[1] * 3
    with scoring(*loaded, context_tokens=limit + 2) as script:
        model = asking(script, prefix=BOS, tokenizer=loaded[1], max_length=limit)
        (ours,) = model.loglikelihood_rolling([text])
    expected = window_by_window(loaded, text, limit)
    assert ours.logprob == pytest.approx(expected, abs=1e-3)
    assert ours.tokens == len(loaded[1].encode(text).ids)


def window_by_window(loaded, text, limit):
    """Each token's ln p from the ids that its window holds before it."""
    import torch

    module, tokenizer = loaded
    ids = tokenizer.encode(BOS + text).ids
    total = 0.0
    for start in range(1, len(ids), limit):
        stop = min(start + limit, len(ids))
        left = max(0, stop - 1 - limit)
        with torch.inference_mode():
            table = module(torch.tensor([ids[left:stop]])).logits[0].log_softmax(-1)
        total += sum(table[i - 1 - left, ids[i]].item() for i in range(start, stop))
    return total


def test_a_text_that_is_too_long_is_refused_with_what_to_do(loaded):
    with scoring(*loaded, context_tokens=16) as script:
        model = asking(script, prefix=BOS)
        with pytest.raises(ApiRefusal, match="max_length"):
            model.loglikelihood_rolling([TEXTS[0] * 4])


def test_without_a_prefix_texts_are_not_scored_and_it_is_said_why(loaded):
    with scoring(*loaded) as script:
        model = asking(script)
        assert model.abilities == {"generate"}
        with pytest.raises(InputError, match="pass prefix="):
            model.loglikelihood(PAIRS)


def test_two_prefixes_are_one_too_many(loaded):
    with scoring(*loaded, bos=BOS) as script, pytest.raises(InputError, match="cannot score"):
        asking(script, prefix="<eos>").loglikelihood(PAIRS)


def test_offsets_in_bytes_are_noticed(loaded):
    with scoring(*loaded, offsets_in_bytes=True) as script:
        model = asking(script, prefix=BOS)
        assert model.loglikelihood([("all", " ascii")])[0].tokens > 0
        with pytest.raises(ApiFault, match="count bytes"):
            model.loglikelihood([("größer", " ist")])
