"""A checkpoint folder, asked: against transformers' own loss, by hand, and in other batches."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch
from askable import LIMIT, SENTENCES, small_tokenizer
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
)

from mergepipe.errors import InputError
from mergepipe.model import Score, rows, writing
from mergepipe.model.load import local_model
from mergepipe.model.windows import spans


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LIMIT,
        initializer_range=0.3, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    small_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


@pytest.fixture(scope="session")
def model(folder):
    return local_model(folder, "tiny")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def loss(model, ids, scored):
    """Nats of the last `scored` ids, one sequence, by transformers' logits alone."""
    with torch.no_grad():
        logits = model.module(torch.tensor([ids[:-1]])).logits[0, -scored:]
    return cross_entropy(logits, torch.tensor(ids[-scored:]), reduction="sum").item()


def ids_of(model, text):
    return model.tokenizer.encode(text, add_special_tokens=False).ids


def close(found, expected):
    assert [(s.tokens, s.bytes, s.greedy) for s in found] == [
        (s.tokens, s.bytes, s.greedy) for s in expected
    ]
    assert [s.logprob for s in found] == pytest.approx([s.logprob for s in expected], abs=1e-3)


@pytest.mark.parametrize("text", SENTENCES)
def test_a_text_has_the_loss_that_transformers_gives_it(model, text):
    ids = torch.tensor([[model.loaded.special.prefix, *ids_of(model, text)]])
    mean = model.module(ids, labels=ids).loss.item()
    [score] = model.loglikelihood_rolling([text])
    assert score.tokens == ids.shape[1] - 1
    assert score.bytes == len(text.encode())
    assert -score.logprob == pytest.approx(mean * score.tokens, rel=1e-5)


def test_windows_of_a_long_text_score_each_token_once(model):
    text = SENTENCES[1] * 5
    ids = [model.loaded.special.prefix, *ids_of(model, text)]
    count = len(ids) - 1
    assert count > 2 * LIMIT
    expected = loss(model, ids[: LIMIT + 1], LIMIT)
    for end in range(2 * LIMIT, count + LIMIT, LIMIT):
        last = min(end, count)
        expected += loss(model, ids[last - LIMIT : last + 1], last - end + LIMIT)
    [score] = model.loglikelihood_rolling([text])
    assert score.tokens == count
    assert -score.logprob == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 14, 15, 100])
@pytest.mark.parametrize("stride", [None, 1, 3, 7, 50])
def test_windows_score_each_token_once_and_are_full(count, stride):
    windows = list(spans(count, 7, stride))
    assert [i for _, start, end in windows for i in range(start, end)] == list(range(count))
    assert all(end - begin == 7 for begin, _, end in windows[1:])
    assert all(end - start <= (stride or 7) for _, start, end in windows[1:])


def test_a_stride_gives_tokens_more_context(model):
    text = SENTENCES[1] * 5
    ids = [model.loaded.special.prefix, *ids_of(model, text)]
    count = len(ids) - 1
    assert count > 2 * LIMIT
    expected = loss(model, ids[: LIMIT + 1], LIMIT)
    for end in range(LIMIT + 2, count + 2, 2):
        last = min(end, count)
        expected += loss(model, ids[last - LIMIT : last + 1], last - end + 2)
    [score] = model.loglikelihood_rolling([text], stride=2)
    assert score.tokens == count
    assert -score.logprob == pytest.approx(expected, rel=1e-5)


def test_a_batch_gives_what_single_requests_give(model, monkeypatch):
    texts = [*SENTENCES, "a", "", SENTENCES[0] * 4]
    pairs = list(pairwise(texts[:5]))
    alone = [model.loglikelihood_rolling([text])[0] for text in texts]
    pairs_alone = [model.loglikelihood([(c[:9], t[:9])])[0] for c, t in pairs]
    close(model.loglikelihood_rolling(texts), alone)
    close(model.loglikelihood([(c[:9], t[:9]) for c, t in pairs]), pairs_alone)
    monkeypatch.setattr(rows, "BATCH_LOGITS", 1)
    close(model.loglikelihood_rolling(texts), alone)


def test_an_empty_text_has_no_bits(model):
    assert model.loglikelihood_rolling([""]) == [Score(0.0, 0, 0, greedy=True)]
    assert model.loglikelihood_rolling([]) == []


def test_a_continuation_is_scored_after_its_context(model):
    context, continuation = "the word was", " with the model."
    start = len(ids_of(model, context))
    ids = [model.loaded.special.prefix, *ids_of(model, context + continuation)]
    [score] = model.loglikelihood([(context, continuation)])
    assert score.tokens == len(ids) - 1 - start
    assert score.bytes == len(continuation)
    assert -score.logprob == pytest.approx(loss(model, ids, score.tokens), rel=1e-5)


def test_the_likeliest_continuation_is_greedy_and_another_is_not(model):
    [written] = model.generate(["the word"], stop=[], max_tokens=1)
    likely, other = model.loglikelihood([("the word", written.text), ("the word", " Bären")])
    assert likely.greedy
    assert not other.greedy


def test_an_empty_context_is_the_prefix_alone(model):
    [score] = model.loglikelihood([("", SENTENCES[0])])
    close([score], model.loglikelihood_rolling([SENTENCES[0]]))


def test_spaces_that_end_a_context_are_scored_with_the_continuation(model):
    spaced, plain = model.loglikelihood([("the ", "word"), ("the", " word")])
    close([spaced], [plain])


def by_hand(model, prompt, count):
    return model.tokenizer.decode(greedy_ids(model, prompt, count), skip_special_tokens=False)


def greedy_ids(model, prompt, count):
    ids = [model.loaded.special.prefix, *ids_of(model, prompt)]
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model.module(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


PROMPTS = ["the", "12+30=", "", "größere Bären", "def add(a, b):", "In the beginning was"]


def test_greedy_text_is_the_argmax_at_every_step(model):
    written = model.generate(PROMPTS, stop=[], max_tokens=8)
    assert [w.text for w in written] == [by_hand(model, prompt, 8) for prompt in PROMPTS]
    assert [w.tokens for w in written] == [8] * len(PROMPTS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_does_not_depend_on_the_batch(model, temperature, monkeypatch):
    def write(prompts):
        return model.generate(prompts, stop=["e"], max_tokens=12, temperature=temperature)

    together = write(PROMPTS)
    assert together == [write([prompt])[0] for prompt in PROMPTS]
    assert together == write(PROMPTS[::-1])[::-1]
    monkeypatch.setattr(writing, "BATCH_ROWS", 2)
    assert together == write(PROMPTS)


def test_a_stop_string_is_cut_off_and_ends_the_text(model):
    [whole] = model.generate(["12+30="], stop=[], max_tokens=12)
    mark = whole.text[4:6]
    [cut] = model.generate(["12+30="], stop=["never", mark], max_tokens=12)
    assert cut.text == whole.text[: whole.text.index(mark)]
    assert cut.tokens < whole.tokens


def test_eos_ends_the_text_and_is_not_part_of_it(model, copy):
    [first] = greedy_ids(model, "the", 1)
    settings = json.loads((copy / "config.json").read_text()) | {"eos_token_id": [1, first]}
    (copy / "config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.add_special_tokens([tokenizer.id_to_token(first)])
    tokenizer.save(str(copy / "tokenizer.json"))
    [written] = local_model(copy, "ends").generate(["the"], stop=[], max_tokens=9)
    assert (written.text, written.tokens) == ("", 1)


def test_seeds_change_what_is_sampled_and_nothing_else_does(model):
    def write(seed):
        return model.generate(PROMPTS, stop=[], max_tokens=8, temperature=1.0, seed=seed)

    state = torch.random.get_rng_state()
    assert write(0) == write(0) != write(1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_samples_have_the_probabilities_of_the_model(model):
    with torch.no_grad():
        logits = model.module(torch.tensor([[model.loaded.special.prefix]])).logits[0, -1]
    p = torch.softmax(logits / 0.7, -1).max().item()
    best = model.tokenizer.decode([int(logits.argmax())], skip_special_tokens=False)
    n = 300
    draws = [
        model.generate([""], stop=[], max_tokens=1, temperature=0.7, seed=seed)[0].text == best
        for seed in range(n)
    ]
    assert abs(sum(draws) / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_what_does_not_fit_the_model_is_refused(model):
    with pytest.raises(InputError, match=r"tiny: a prompt and its new tokens are \d+ tokens"):
        model.generate(["word " * 40], stop=[], max_tokens=16)
    with pytest.raises(InputError, match="but the model takes 48"):
        model.loglikelihood([("word " * 60, "word")])


OTHERS = [
    GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=LIMIT,
               initializer_range=0.3, bos_token_id=0, eos_token_id=1),
    MistralConfig(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LIMIT,
                  sliding_window=8, initializer_range=0.3, bos_token_id=0, eos_token_id=1),
]  # fmt: skip


@pytest.mark.parametrize("config", OTHERS, ids=lambda config: config.model_type)
def test_padding_is_not_seen_by_other_architectures(config, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    model = local_model(tmp_path, "other")
    ask = {"stop": ["e"], "max_tokens": 8}
    alone = [model.generate([prompt], **ask)[0] for prompt in PROMPTS]
    assert model.generate(PROMPTS, **ask) == alone
    alone = [model.loglikelihood_rolling([text])[0] for text in SENTENCES]
    close(model.loglikelihood_rolling(SENTENCES), alone)


def test_a_tokenizer_without_tokenizer_json_is_read_by_transformers(model, copy):
    model.tokenizer.model.save(str(copy))
    (copy / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    old = local_model(copy, "old")
    assert (old.loaded.special.prefix, old.loaded.special.ends) == (
        model.loaded.special.prefix,
        model.loaded.special.ends,
    )
    assert [ids_of(old, text) for text in SENTENCES] == [ids_of(model, t) for t in SENTENCES]


def test_an_id_that_is_no_special_token_is_not_taken_for_one(copy):
    (copy / "tokenizer_config.json").unlink()
    settings = json.loads((copy / "config.json").read_text()) | {"bos_token_id": 77}
    for file in ("config.json", "generation_config.json"):
        (copy / file).write_text(json.dumps(settings))
    assert local_model(copy, "defaults").loaded.special.prefix == 1
    for file in ("config.json", "generation_config.json"):
        (copy / file).write_text(json.dumps(settings | {"eos_token_id": 78}))
    with pytest.raises(InputError, match="neither a BOS nor an EOS"):
        local_model(copy, "none")


def test_scores_in_bfloat16_are_near(folder, model):
    half = local_model(folder, "half", dtype="bfloat16")
    for low, full in zip(*(m.loglikelihood_rolling(SENTENCES) for m in (half, model)), strict=True):
        assert low.logprob == pytest.approx(full.logprob, rel=0.03)
        assert low.logprob != full.logprob


def test_eos_is_the_prefix_of_a_model_without_bos(copy):
    (copy / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    for file in ("config.json", "generation_config.json"):
        settings = json.loads((copy / file).read_text()) | {"bos_token_id": None}
        (copy / file).write_text(json.dumps(settings))
    assert local_model(copy, "no bos").loaded.special.prefix == 1


def test_the_folders_sampling_settings_do_not_change_what_is_written(model, copy):
    settings = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0, "num_beams": 3}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    ask = {"stop": [], "max_tokens": 8}
    assert local_model(copy, "copy").generate(PROMPTS, **ask) == model.generate(PROMPTS, **ask)


def test_loading_and_asking_print_nothing(folder, capfd, caplog):
    model = local_model(folder, "quiet")
    model.generate(["a"], stop=["\n"], max_tokens=2)
    model.loglikelihood_rolling(["a" * 400])
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


BROKEN = [
    ("config.json", None, "no config.json"),
    ("config.json", b"{", "config.json"),
    ("config.json", b'{"model_type": "unheard_of"}', "cannot be loaded"),
    ("model.safetensors", None, "cannot be loaded"),
    ("model.safetensors", b"\xff" * 64, "cannot be loaded"),
    ("tokenizer.json", b'{"model": 7}', "no usable tokenizer"),
    ("tokenizer_config.json", b"[", "not JSON"),
]


@pytest.mark.parametrize(("file", "content", "message"), BROKEN)
def test_a_broken_folder_is_an_error_that_names_it(copy, file, content, message):
    (copy / file).unlink() if content is None else (copy / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        local_model(copy, "broken")
    assert str(copy) in str(caught.value)


def test_missing_weights_are_an_error_not_random_numbers(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        local_model(copy, "hole")


def test_a_tokenizer_larger_than_the_embedding_is_named(copy):
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save(str(copy / "tokenizer.json"))
    model = local_model(copy, "grown")
    model.loglikelihood_rolling(["fine"])
    with pytest.raises(InputError, match="grown: its tokenizer gives ids beyond its 320"):
        model.loglikelihood_rolling(["an <extra> token"])
