"""Mixtures of models by numbers worked out otherwise: paths enumerated, logits summed, votes."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergepipe.errors import InputError
from mergepipe.model import Generation
from mergepipe.model.answers import Answers, Remembered
from mergepipe.model.byte_models import ByteTraced
from mergepipe.model.load import local_model
from mergepipe.model.mixture import Ensemble
from mergepipe.model.switching import aligned, text_logprobs, turns_after
from mergepipe.model.traces import Trace
from mergepipe.model.voting import elected
from mergepipe.tokenizer import read_vocabulary

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"
LABELS = ("german", "python", "arithmetic")
TEXTS = ["Und er sprach: ja.\n", "def f(x):\n    return x\n", "12+3=15\n", "a", "Größe"]
PAIRS = [("12+3=", "15"), ("Und er ", "sprach"), ("a  ", " b"), ("", "def"), ("x", "")]
PROMPTS = ["12+3=", "Und er sprach", "34+5=", "def f("]
SHARES = {"german": 0.2, "python": 0.3, "arithmetic": 0.5}
SWITCHES = (0.0, 0.3, 1.0)

# Two tokenizers over a and b: one merges "ab", the other "ba"; each with bigrams of its tokens.
MERGED = ("ab", "ba")
BIGRAMS = (
    {"": (0.5, 0.2, 0.3), "a": (0.6, 0.1, 0.3), "b": (0.3, 0.5, 0.2), "ab": (0.2, 0.3, 0.5)},
    {"": (0.1, 0.3, 0.6), "a": (0.2, 0.2, 0.6), "b": (0.1, 0.8, 0.1), "ba": (0.5, 0.4, 0.1)},
)


def toy_trace(member: int, text: str, first: int = 0) -> Trace:
    merged = MERGED[member]
    tokens = re.findall(f"{merged}|a|b", text)
    starts = [sum(map(len, tokens[:at])) for at in range(len(tokens))]
    logprobs = [
        math.log(BIGRAMS[member][before][("a", "b", merged).index(token)])
        for before, token in zip(["", *tokens], tokens, strict=False)
    ]
    greedy = (False,) * len(tokens)
    return Trace(tuple(starts), tuple(logprobs), greedy, first, len(text))


def enumerated(traces, weights, switch):
    """Sum over who writes each span; a writer goes on at the ends of tokens inside it."""
    cuts = sorted(set.intersection(*(set(one.starts) for one in traces)))
    chances = []
    for one, weight in zip(traces, weights, strict=True):
        spans = []
        for start, end in zip(cuts, [*cuts[1:], math.inf], strict=True):
            inside = [p for s, p in zip(one.starts, one.logprobs, strict=True) if start <= s < end]
            stays = (1 - switch + switch * weight) ** (len(inside) - 1)
            spans.append(math.exp(sum(inside)) * stays)
        chances.append(spans)
    total = 0.0
    for path in itertools.product(range(len(traces)), repeat=len(cuts)):
        chance = weights[path[0]]
        for before, after in itertools.pairwise(path):
            chance *= (1 - switch) * (before == after) + switch * weights[after]
        total += chance * math.prod(chances[i][k] for k, i in enumerate(path))
    return total


WORDS = ["".join(letters) for letters in itertools.product("ab", repeat=6)]


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_texts_probability_is_that_of_all_ways_to_take_turns(switch):
    for text in WORDS[::5]:
        traces = [toy_trace(0, text), toy_trace(1, text)]
        (found,) = text_logprobs([aligned(traces)], [0.4, 0.6], switch)
        assert math.exp(found) == pytest.approx(enumerated(traces, [0.4, 0.6], switch), rel=1e-12)


@given(st.floats(0, 1), st.floats(0.01, 0.99))
@settings(max_examples=30, deadline=None)
def test_all_texts_together_are_no_likelier_than_1_whatever_the_tokenizers(switch, weight):
    spans = [aligned([toy_trace(0, text), toy_trace(1, text)]) for text in WORDS]
    total = sum(map(math.exp, text_logprobs(spans, [weight, 1 - weight], switch)))
    assert total <= 1 + 1e-9


@given(st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_with_one_tokenizer_all_texts_have_what_the_members_give_them(switch):
    both = [aligned([toy_trace(0, text)] * 2) for text in WORDS]
    alone = [math.fsum(toy_trace(0, text).logprobs) for text in WORDS]
    assert text_logprobs(both, [0.3, 0.7], switch) == pytest.approx(alone, rel=1e-9)


def test_texts_are_cut_where_tokens_of_all_begin():
    one = Trace((0, 2, 3, 6), (-1.0, -2.0, -3.0, -4.0), (True,) * 4, 3, 8)
    other = Trace((0, 3, 5, 6), (-0.1, -0.2, -0.3, -0.4), (True, True, False, True), 2, 8)
    spans = aligned([one, other])  # cuts at 0, 3 and 6; the second begins what it scores at 5
    assert spans.logprobs.tolist() == [[-3.0, -0.1], [-3.0, -0.5], [-4.0, -0.4]]
    assert spans.inner.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert (spans.first, spans.is_greedy) == (1, False)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_continuation_is_as_likely_as_the_whole_for_the_context(switch):
    text = "abbaab"
    whole = [aligned([toy_trace(0, text), toy_trace(1, text)])]
    part = [aligned([toy_trace(0, text, 3), toy_trace(1, text, 3)])]  # both begin at 4
    context = [aligned([toy_trace(0, text[:4]), toy_trace(1, text[:4])])]
    found, asked, given_ = (
        text_logprobs(one, [0.4, 0.6], switch)[0] for one in (whole, part, context)
    )
    assert asked == pytest.approx(found - given_, rel=1e-12)


def test_whose_turn_it_is_follows_bayes():
    spans = aligned([toy_trace(0, "ab"), toy_trace(1, "ab")])
    likely = [0.4 * 0.3, 0.6 * (0.1 * 0.2)]
    expected = [one / sum(likely) for one in likely]
    assert turns_after(spans, [0.4, 0.6], 0.0) == pytest.approx(expected)
    assert turns_after(spans, [0.4, 0.6], 1.0) == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((0.4, 0.35, 0.25), " 5 "),  # 0.6 against 0.4: the heavier of the two speaks
        ((0.5, 0.25, 0.25), "4"),  # a tie: the heaviest member
        ((0.2, 0.4, 0.4), " 5 "),  # two of one weight: the first
    ],
)
def test_votes_by_hand(weights, expected):
    said = [Generation("4", 1), Generation(" 5 ", 2), Generation("5", 3)]
    assert elected(said, weights) == Generation(expected, 6)


def test_votes_are_on_what_the_pattern_names():
    said = [Generation("It is 4.", 1), Generation("4!", 1), Generation("it is 5", 1)]
    assert elected(said, (0.3, 0.3, 0.4), re.compile(r"\d")).text == "It is 4."


@pytest.fixture(scope="module")
def models():
    return {label: local_model(QUICKSTART / label, label) for label in LABELS}


def ensemble(models, mix="tokens"):
    answers = Answers()
    return Ensemble({label: Remembered(one, answers) for label, one in models.items()}, mix)


def alone(label):
    return {one: float(one == label) for one in LABELS}


def table(model, text):
    """ln p of every token after each of a text's, float64 [position, token]."""
    ids = [model.loaded.special.prefix, *model.loaded.encode([text])[0]]
    with torch.inference_mode():
        return model.module(torch.tensor([ids])).logits[0].double().log_softmax(-1), ids[1:]


@pytest.mark.parametrize("mix", ["tokens", "product"])
@pytest.mark.parametrize("label", LABELS[1:])
def test_all_the_weight_on_one_model_is_that_model(models, mix, label):
    mixture, model = ensemble(models, mix).mixture(alone(label)), models[label]
    for ours, theirs in (
        (mixture.loglikelihood(PAIRS), model.loglikelihood(PAIRS)),
        (mixture.loglikelihood_rolling(TEXTS), model.loglikelihood_rolling(TEXTS)),
    ):
        assert [(one.bytes, one.greedy) for one in ours] == [(o.bytes, o.greedy) for o in theirs]
        expected = [one.logprob for one in theirs]
        assert [one.logprob for one in ours] == pytest.approx(expected, abs=2e-5)
    for temperature in (0.0, 1.0):
        asked = {"stop": ["\n"], "max_tokens": 6, "temperature": temperature, "seed": 3}
        assert mixture.generate(PROMPTS, **asked) == model.generate(PROMPTS, **asked)


def test_next_tokens_are_mixed_by_their_weights(models):
    text = TEXTS[0]
    tables = [table(models[label], text) for label in LABELS]
    mixed = sum(share * one.exp() for share, (one, _) in zip(SHARES.values(), tables, strict=True))
    ids = tables[0][1]
    expected = sum(math.log(mixed[at, number]) for at, number in enumerate(ids))
    (score,) = ensemble(models).mixture(SHARES).loglikelihood_rolling([text])
    assert score.logprob == pytest.approx(expected, abs=1e-4)
    assert mixed.sum(-1).numpy() == pytest.approx(1)


def test_a_product_is_normalised_over_the_vocabulary(models):
    text = TEXTS[2]
    tables = [table(models[label], text) for label in LABELS]
    summed = sum(share * one for share, (one, _) in zip(SHARES.values(), tables, strict=True))
    logprobs = summed.log_softmax(-1)
    expected = sum(logprobs[at, number].item() for at, number in enumerate(tables[0][1]))
    (score,) = ensemble(models, "product").mixture(SHARES).loglikelihood_rolling([text])
    assert score.logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("switch", [1.0, 0.2])
def test_the_likeliest_token_of_the_mixture_is_written(models, switch):
    mixture = ensemble(models).mixture(SHARES, switch=switch)
    (written,) = mixture.generate(["47-8="], stop=[], max_tokens=2)
    text = "47-8="
    for _ in range(2):
        vocabulary = [chr(code) for code in range(32, 127)]
        scores = mixture.loglikelihood([(text, one) for one in vocabulary])
        best = max(zip(scores, vocabulary, strict=True), key=lambda one: one[0].logprob)
        text += best[1]
    assert f"47-8={written.text}" == text


def test_members_are_asked_once_for_all_weights():
    counted = {label: local_model(QUICKSTART / label, label) for label in LABELS[:2]}
    several = ensemble(counted)
    for share in (0.1, 0.5, 0.9):
        weights = {"german": share, "python": 1 - share}
        several.mixture(weights).loglikelihood_rolling(TEXTS)
    assert [one.usage.requests for one in counted.values()] == [len(TEXTS)] * 2
    assert several.usage.requests == 2 * len(TEXTS)


def test_mixtures_of_other_weights_have_other_fingerprints(models):
    several = ensemble(models)
    made = [
        several.mixture(SHARES),
        several.mixture(SHARES, switch=0.5),
        several.mixture(alone("python")),
        ensemble(models, "votes").mixture(SHARES),
    ]
    assert len({one.fingerprint for one in made}) == len(made)
    scaled = {label: 10 * share for label, share in SHARES.items()}
    shares = several.mixture(scaled).weights
    assert list(shares.values()) == pytest.approx(list(SHARES.values()))


@pytest.mark.parametrize("weights", [{"german": 0.0, "python": 0.0}, {"german": -1, "python": 2}])
def test_weights_that_mix_nothing_are_refused(models, weights):
    two = {label: models[label] for label in weights}
    with pytest.raises(InputError, match="weights of 0 or more"):
        ensemble(two).mixture(weights)


def test_votes_score_no_texts_and_say_so(models):
    mixture = ensemble(models, "votes").mixture(SHARES)
    assert mixture.abilities == {"generate"}
    with pytest.raises(InputError, match="votes are on answers"):
        mixture.loglikelihood(PAIRS)
    said = mixture.generate(PROMPTS, stop=["\n"], max_tokens=4)
    each = [one.generate(PROMPTS, stop=["\n"], max_tokens=4) for one in models.values()]
    expected = [elected(one, list(SHARES.values())) for one in zip(*each, strict=True)]
    assert said == expected


def spelled(folder):
    tokens = read_vocabulary(folder, "model").tokens
    return {number: one.bytes for number, one in tokens.items() if one.kind != "special"}


@pytest.fixture(scope="module")
def by_bytes(models):
    tokens = spelled(QUICKSTART / "german")
    return {label: ByteTraced(models[label], tokens) for label in LABELS[:2]}


@pytest.mark.parametrize("text", ["", "Und er spr", "a = 12", "f(x)\n\n", "gr\u00fc", "x  "])
def test_bytes_of_a_real_model_sum_to_one_and_are_ratios_of_texts(by_bytes, text):
    model = by_bytes["german"].by_bytes
    ahead = model.state(text.encode()).ahead()
    assert (ahead / ahead.sum()).sum() == pytest.approx(1)
    starts = [model.logprob(text.encode() + bytes([byte])) for byte in b"se \n1"]
    if text:
        assert max(starts) <= model.logprob(text.encode())
    ratios = np.exp(np.array(starts) - starts[0])
    assert ahead[list(b"se \n1")] / ahead[ord("s")] == pytest.approx(ratios, rel=1e-4)


@pytest.mark.parametrize("text", [*TEXTS, "if x:\n\n    y = 'ä€🙂'\n"])
def test_bytes_are_at_least_as_likely_as_the_tokenizers_own_encoding(by_bytes, models, text):
    (trace,) = by_bytes["german"].trace_texts([text])
    (score,) = models["german"].loglikelihood_rolling([text])
    assert len(trace.logprobs) == len(text.encode())
    assert score.logprob - 1e-4 <= sum(trace.logprobs) <= score.logprob + 3
    assert max(trace.logprobs) <= 1e-9


def test_bytes_are_mixed_and_written_by_their_weights(by_bytes):
    several = ensemble(by_bytes, "bytes")
    mixture = several.mixture({"german": 1.0, "python": 3.0})
    first, second = (one.trace_texts(["Und"])[0].logprobs for one in by_bytes.values())
    expected = sum(
        math.log(0.25 * math.exp(a) + 0.75 * math.exp(b))
        for a, b in zip(first, second, strict=True)
    )
    (score,) = mixture.loglikelihood_rolling(["Und"])
    assert (score.logprob, score.bytes) == (pytest.approx(expected), 3)
    (written,) = mixture.generate(["Und er"], stop=[], max_tokens=2)
    states = [one.by_bytes.state(b"Und er") for one in by_bytes.values()]
    ahead = [one.ahead() / one.ahead().sum() for one in states]
    likeliest = int((0.25 * ahead[0] + 0.75 * ahead[1]).argmax())
    assert written.text.encode()[0] == likeliest
    assert written.tokens == 2


def test_answers_are_kept_for_later_runs_and_for_their_owner_alone(models, tmp_path):
    file = tmp_path / "kept" / "answers.db"
    first = Remembered(models["python"], Answers(file))
    traces = first.trace(PAIRS[:2])
    texts = first.generate(PROMPTS[:2], stop=["\n"], max_tokens=3)
    before = models["python"].usage.requests
    again = Remembered(models["python"], Answers(file))
    assert again.trace(PAIRS[:2]) == traces
    assert again.generate(PROMPTS[:2], stop=["\n"], max_tokens=3) == texts
    assert models["python"].usage.requests == before
    assert file.stat().st_mode & 0o077 == 0
    assert b"12+3=" not in file.read_bytes()
    assert json.dumps(PROMPTS[0]).encode() not in file.read_bytes()
