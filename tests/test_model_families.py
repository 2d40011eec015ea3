"""Masked models, encoder-decoders and classifiers, held against transformers item by item."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from askable import LIMIT, SENTENCES, askable
from torch.nn.functional import cross_entropy

from mergepipe.errors import InputError
from mergepipe.model import Score, rows
from mergepipe.model.load import local_model

KINDS = ("bert", "roberta", "t5", "bart")
PAIRS = [(context[:12], text[:14]) for context, text in pairwise(SENTENCES)]
TEXTS = [*(text[:30] for text in SENTENCES), "a", ""]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
    folder = tmp_path_factory.mktemp("kinds")
    kinds = ("llama", *KINDS, "bert_classes", "llama_classes")
    return {kind: local_model(askable(kind, folder / kind), kind) for kind in kinds}


def ids_of(model, text):
    return model.tokenizer.encode(text, add_special_tokens=False).ids


def pseudo_loss(model, ids, start):
    """Nats of the ids from `start` on, each masked by itself, one sequence at a time."""
    total = 0.0
    for at in range(start + 1, len(ids) + 1):
        seen = torch.tensor([[0, *ids, 1]])
        target = seen[0, at].clone()
        seen[0, at] = 3
        with torch.no_grad():
            total += cross_entropy(model.module(seen).logits[0, at], target).item()
    return total


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_masked_model_predicts_each_token_from_all_others(models, kind, text):
    model = models[kind]
    [score] = model.loglikelihood_rolling([text])
    ids = ids_of(model, text)
    assert (score.tokens, score.bytes) == (len(ids), len(text.encode()))
    assert -score.logprob == pytest.approx(pseudo_loss(model, ids, 0), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_masked_model_scores_the_continuation_with_the_context_in_view(models, kind):
    model = models[kind]
    found = model.loglikelihood(PAIRS)
    for (context, continuation), score in zip(PAIRS, found, strict=True):
        ids = ids_of(model, context + continuation)
        start = len(ids_of(model, context.rstrip(" ")))
        assert score.tokens == len(ids) - start
        assert -score.logprob == pytest.approx(pseudo_loss(model, ids, start), rel=1e-5)


def test_a_text_longer_than_a_masked_model_is_scored_in_full_windows(models):
    model, room = models["bert"], LIMIT - 2
    ids = ids_of(model, SENTENCES[1] * 3)
    assert 2 * room > len(ids) > room
    [score] = model.loglikelihood_rolling([SENTENCES[1] * 3])
    last = ids[-room:]
    expected = pseudo_loss(model, ids[:room], 0) + pseudo_loss(model, last, 2 * room - len(ids))
    assert score.tokens == len(ids)
    assert -score.logprob == pytest.approx(expected, rel=1e-5)


def test_the_limit_of_a_roberta_is_what_its_positions_leave(models):
    model = models["roberta"]
    assert model.loaded.max_length == LIMIT
    [score] = model.loglikelihood_rolling([SENTENCES[0] * 4])
    assert score.tokens == len(ids_of(model, SENTENCES[0] * 4))


STARTS = {"t5": [2], "bart": [1, 0]}


def decoder_loss(model, kind, source, ids, scored=None):
    """Nats of the decoder's last `scored` ids, by transformers' logits alone."""
    scored = len(ids) if scored is None else scored
    decoder = torch.tensor([[*STARTS[kind], *ids]])[:, :-1]
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([source]), decoder_input_ids=decoder).logits[
            0, -scored:
        ]
    return cross_entropy(logits, torch.tensor(ids[-scored:]), reduction="sum").item()


def source_of(model, kind, text):
    return [*([0] if kind == "bart" else []), *ids_of(model, text), 1]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_sees_the_context_and_the_decoder_gives_the_continuation(models, kind):
    model = models[kind]
    for (context, continuation), score in zip(PAIRS, model.loglikelihood(PAIRS), strict=True):
        kept = context.rstrip(" ")
        ids = ids_of(model, context[len(kept) :] + continuation)
        expected = decoder_loss(model, kind, source_of(model, kind, kept), ids)
        assert score.tokens == len(ids)
        assert -score.logprob == pytest.approx(expected, rel=1e-5)


def test_a_continuation_has_the_loss_that_t5_gives_its_labels(models):
    model = models["t5"]
    ids = ids_of(model, " with the model.")
    source = torch.tensor([source_of(model, "t5", "the word was")])
    mean = model.module(input_ids=source, labels=torch.tensor([ids])).loss.item()
    [score] = model.loglikelihood([("the word was", " with the model.")])
    assert -score.logprob == pytest.approx(mean * len(ids), rel=1e-5)


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("text", [SENTENCES[0], SENTENCES[1] * 3])
def test_a_text_by_itself_is_the_decoders_while_the_encoder_sees_an_empty_one(models, kind, text):
    model, room = models[kind], LIMIT - len(STARTS[kind]) + 1
    ids, nothing = ids_of(model, text), source_of(model, kind, "")
    expected = decoder_loss(model, kind, nothing, ids[:room])
    if len(ids) > room:
        expected += decoder_loss(model, kind, nothing, ids[-room:], len(ids) - room)
    [score] = model.loglikelihood_rolling([text])
    assert score.tokens == len(ids)
    assert -score.logprob == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_single_requests_give(models, kind, monkeypatch):
    model = models[kind]
    alone = [model.loglikelihood_rolling([text])[0] for text in TEXTS]
    pairs = [model.loglikelihood([pair])[0] for pair in PAIRS]
    for _ in range(2):
        together = [*model.loglikelihood_rolling(TEXTS), *model.loglikelihood(PAIRS)]
        assert [(s.tokens, s.bytes) for s in together] == [
            (s.tokens, s.bytes) for s in alone + pairs
        ]
        assert [s.logprob for s in together] == pytest.approx(
            [s.logprob for s in alone + pairs], abs=1e-3
        )
        monkeypatch.setattr(rows, "BATCH_LOGITS", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_empty_has_no_bits(models, kind):
    model = models[kind]
    assert model.loglikelihood_rolling([""]) == [Score(0.0, 0, 0, greedy=True)]
    assert model.loglikelihood([("", ""), ("a", "")]) == [Score(0.0, 0, 0, greedy=True)] * 2


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_greedy_text_of_a_decoder_is_the_argmax_at_every_step(models, kind):
    model, prompts = models[kind], ["the", "12+30=", "", "größere Bären"]
    written = model.generate(prompts, stop=[], max_tokens=6)
    for prompt, text in zip(prompts, written, strict=True):
        source, ids = torch.tensor([source_of(model, kind, prompt)]), [*STARTS[kind]]
        for _ in range(6):
            with torch.no_grad():
                logits = model.module(
                    input_ids=source, decoder_input_ids=torch.tensor([ids])
                ).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == 1:
                break
        new = ids[len(STARTS[kind]) :]
        assert text.tokens == len(new)
        assert text.text == model.tokenizer.decode(
            [i for i in new if i != 1], skip_special_tokens=False
        )


@pytest.mark.parametrize(("kind", "ends"), [("bert_classes", (0, 1)), ("llama_classes", ())])
def test_a_classifier_gives_each_text_the_logits_that_it_has_alone(models, kind, ends):
    model = models[kind]
    texts = [text for text in TEXTS if text]
    for text, logits in zip(texts, model.classify(texts), strict=True):
        ids = [*ends[:1], *ids_of(model, text), *ends[1:]]
        with torch.no_grad():
            [expected] = model.module(torch.tensor([ids])).logits.tolist()
        assert logits == pytest.approx(expected, abs=1e-4)


def test_classes_have_the_names_of_the_config(models):
    assert models["bert_classes"].classes == ("bad", "so so", "good")


ABLE = {
    "llama": {"loglikelihood", "rolling", "generate", "weights"},
    "bert": {"loglikelihood", "rolling", "weights"},
    "t5": {"loglikelihood", "rolling", "generate", "weights"},
    "bert_classes": {"classify", "weights"},
}


@pytest.mark.parametrize("kind", ABLE)
def test_a_model_says_what_it_can_do_and_refuses_the_rest(models, kind):
    model = models[kind]
    assert model.abilities == ABLE[kind]
    asked = {
        "loglikelihood": lambda: model.loglikelihood([("a", "b")]),
        "rolling": lambda: model.loglikelihood_rolling(["a"]),
        "generate": lambda: model.generate(["a"], stop=[], max_tokens=1),
        "classify": lambda: model.classify(["a"]),
    }
    for ability, ask in asked.items():
        if ability in ABLE[kind]:
            assert len(ask()) == 1
        else:
            with pytest.raises(InputError, match=rf"{kind}: .* has no answer to '{ability}'"):
                ask()


@pytest.mark.parametrize("kind", ["bert", "t5", "bert_classes"])
def test_what_does_not_fit_is_refused(models, kind):
    model, text = models[kind], "word " * 60
    ask = (
        model.classify
        if kind == "bert_classes"
        else lambda texts: model.loglikelihood([(texts[0], "b")])
    )
    with pytest.raises(
        InputError, match=rf"{kind}: .* are \d+ tokens, but the model takes {LIMIT}"
    ):
        ask([text])


def test_a_masked_model_without_a_mask_is_refused(tmp_path):
    folder = askable("bert", tmp_path)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace("<mask>", "<other>"), "utf-8")
    with pytest.raises(InputError, match="no mask token"):
        local_model(folder, "maskless")


def test_usage_counts_what_was_read_and_written(models):
    model = models["llama"]
    before = model.usage
    model.loglikelihood_rolling(SENTENCES[:2])
    model.generate(["the"], stop=[], max_tokens=5)
    used = model.usage - before
    read = sum(len(ids_of(model, text)) for text in SENTENCES[:2])  # all but the last, and <s>
    assert used.requests == 3
    assert used.prompt_tokens == read + 1 + len(ids_of(model, "the"))
    assert 1 <= used.generated_tokens <= 5
    assert used.seconds > 0
    assert used.usd == 0
