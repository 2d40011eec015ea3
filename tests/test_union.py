"""One vocabulary out of several: which tokens, which rows, which files; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import edit_json, write_json
from material import glass, tokenizer
from merges import tensors
from tokenizers import Tokenizer
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer
from worded import EMBEDDING, HEAD, SPECIAL, WORDS, ids_of, planned, rows_of, worded

from mergepipe.errors import InputError
from mergepipe.pipeline import merge

CHATML = ("<|im_start|>", "<|im_end|>")
SOURCES = sorted((Path(__file__).parent.parent / "mergepipe").rglob("*.py"))
TEXTS = [path.read_text(encoding="utf-8").replace("<|im_", "<im_") for path in SOURCES]
QUICKSTART = Path(__file__).parent.parent / "recipes/quickstart"


def test_there_is_text():
    assert sum(map(len, TEXTS)) > 500_000


@pytest.fixture
def models(tmp_path) -> dict[str, Path]:
    return {
        "base": worded(tmp_path / "base", seed=1),
        "chat": worded(tmp_path / "chat", CHATML, seed=2),
        "tool": worded(tmp_path / "tool", ("<|tool|>", "<|im_end|>"), seed=3),
    }


def merged(folder, models, tokenizer="union", /, **fields):
    return merge(planned(folder, models, tokenizer, **fields)).folder


def refused(folder, models, tokenizer="union", /, **fields):
    with pytest.raises(InputError) as caught:
        planned(folder, models, tokenizer, **fields)
    return str(caught.value)


def warned(folder, models, tokenizer="union"):
    return "\n".join(planned(folder, models, tokenizer).warnings)


def test_a_union_appends_in_the_order_of_recipe_and_ids(tmp_path, models):
    found = ids_of(merged(tmp_path, models))
    assert [found[one] for one in (*CHATML, "<|tool|>")] == [64, 65, 66]
    assert len(found) == 67


def test_rows_follow_the_words(tmp_path, models):
    rows = rows_of(merged(tmp_path, models))
    chat, tool = rows_of(models["chat"]), rows_of(models["tool"])
    assert_close(rows["<|im_start|>"], chat["<|im_start|>"])
    # Two have it, and the base takes their mean.
    assert_close(rows["<|im_end|>"], (chat["<|im_end|>"] + tool["<|im_end|>"]) / 2)


def test_only_the_vocabulary_is_aligned(tmp_path, models):
    found, base = tensors(merged(tmp_path, models)), tensors(models["base"])
    assert {name for name in base if found[name].shape != base[name].shape} == {EMBEDDING, HEAD}


def test_the_vocabulary_of_one_model_can_be_chosen(tmp_path, models):
    folder = merged(tmp_path, models, "tool")
    assert ids_of(folder) == ids_of(models["tool"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (models["tool"] / name).read_bytes()


def test_moved_ids_are_aligned(tmp_path):
    words = (*SPECIAL, *WORDS[::-1])
    models = {
        "base": worded(tmp_path / "base", seed=1),
        "moved": worded(tmp_path / "moved", words=words, seed=1),
    }
    table = tensors(models["moved"])[EMBEDDING]
    base, moved = rows_of(models["base"]), rows_of(models["moved"])
    rows = rows_of(merged(tmp_path, models))
    assert not torch.equal(base["_tok_3"], moved["_tok_3"])
    assert all(torch.equal(rows[one], (base[one] + moved[one]) / 2) for one in WORDS)
    assert table.shape[0] == 64


def test_where_vocabularies_agree_nothing_changes(tmp_path):
    models = {name: worded(tmp_path / name, seed=n) for n, name in enumerate(("base", "other"))}
    plain, asked = (planned(tmp_path, models, one) for one in (None, "union"))
    assert plain.plans[0].steps == asked.plans[0].steps
    assert all(one.stored.memory is None for one in asked.plans[0].steps[0].inputs)
    folder = merge(asked).folder
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (models["base"] / name).read_bytes()


def test_padding_rows_stay_where_vocabularies_agree(tmp_path):
    models = {name: worded(tmp_path / name, rows=80) for name in ("base", "other")}
    assert tensors(merged(tmp_path, models))[EMBEDDING].shape[0] == 80


def test_padding_rows_are_the_mean_of_the_others(tmp_path, models):
    folder = merged(tmp_path, models, {"source": "union", "pad_to_multiple_of": 32})
    table = tensors(folder)[EMBEDDING]
    assert table.shape[0] == json.loads((folder / "config.json").read_text())["vocab_size"] == 96
    assert_close(table[67:], table[:67].mean(dim=0).expand(29, -1), rtol=1e-4, atol=1e-7)


def test_rows_can_be_chosen_word_by_word(tmp_path, models):
    tokens = {
        "<|im_end|>": {"take": "chat", "force": True},
        "<|tool|>": {"take": "chat", "token": "</s>"},
        "<|new|>": {"take": "tool", "id": 7},
        "<|none|>": "zero",
        "_tok_9": {"take": "base"},
    }
    rows = rows_of(merged(tmp_path, models, {"source": "union", "tokens": tokens}))
    base, chat, tool = (rows_of(models[one]) for one in ("base", "chat", "tool"))
    assert_close(rows["<|im_end|>"], chat["<|im_end|>"])
    assert_close(rows["<|tool|>"], (2 * chat["</s>"] + tool["<|tool|>"]) / 3)
    assert_close(rows["<|new|>"], tool["_tok_7"])
    assert not rows["<|none|>"].any()
    assert_close(rows["_tok_9"], (base["_tok_9"] + chat["_tok_9"] + tool["_tok_9"]) / 3)


WRONG = {
    "takes no model": ({"<|x|>": {"take": "nobody"}}, "unknown model 'nobody'"),
    "takes nothing": ({"<|x|>": {}}, "say `take: MODEL`, or `zero`"),
    "token and id": ({"<|x|>": {"take": "chat", "token": "a", "id": 1}}, "both name a row"),
    "an unknown field": ({"<|x|>": {"taek": "chat"}}, "did you mean 'take'?"),
    "no such token": ({"<|x|>": {"take": "chat"}}, "chat has no token <|x|>"),
    "no such other token": ({"<|x|>": {"take": "chat", "token": "<|y|>"}}, "no token <|y|>"),
    "no such row": ({"<|x|>": {"take": "chat", "id": 66}}, "chat has 66 rows, none for id 66"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_source_is_named_with_its_place(tmp_path, models, name):
    tokens, words = WRONG[name]
    message = refused(tmp_path, models, {"source": "union", "tokens": tokens})
    assert words in message
    assert "tokenizer.tokens.<|x|>" in message


def test_a_model_labelled_union_is_refused(tmp_path, models):
    models["union"] = models.pop("chat")
    assert "give the model another label" in refused(tmp_path, models)


def test_ordinary_words_that_differ_are_refused_with_advice(tmp_path):
    words = (*SPECIAL, *(f"w{n}" for n in range(40)), *WORDS[:21])
    models = {
        "base": worded(tmp_path / "base"),
        "other": worded(tmp_path / "other", words=words),
    }
    message = refused(tmp_path, models)
    assert "40 ordinary tokens are not in base's vocabulary: w0, w1" in message
    assert "transplant its tokenizer first" in message
    allowed = {"source": "union", "allow_ordinary_union": True}
    assert "as added tokens they cut words" in warned(tmp_path, models, allowed)
    assert len(ids_of(merged(tmp_path, models, allowed))) == 104


def test_models_with_tokenizers_of_their_own_are_refused(tmp_path):
    models = {one: glass(one, tmp_path / one) or tmp_path / one for one in ("en", "pt")}
    assert "ordinary tokens are not in en's vocabulary" in refused(tmp_path, models)


def test_a_model_without_a_tokenizer_is_named(tmp_path, models):
    (models["tool"] / "tokenizer.json").unlink()
    assert "tool: has no tokenizer" in refused(tmp_path, models)
    assert "66 rows, where base has 64" in refused(tmp_path, models, "base")


def test_a_token_far_behind_the_rows_is_named(tmp_path, models):
    stored = json.loads((models["tool"] / "tokenizer.json").read_text())
    stored["added_tokens"][-1]["id"] = 99999
    write_json(models["tool"] / "tokenizer.json", stored)
    message = refused(tmp_path, models)
    assert "tool (tokenizer.json)" in message
    assert "99999" in message


def test_tokens_without_a_row_never_enter(tmp_path):
    models = {
        "base": worded(tmp_path / "base", ("<UNUSED_0>", "<UNUSED_1>"), rows=64),
        "chat": worded(tmp_path / "chat", CHATML, seed=2),
    }
    folder = merged(tmp_path, models)
    assert list(ids_of(folder))[64:] == list(CHATML)
    assert "2 tokens have no row and are left out" in warned(tmp_path, models)


def test_words_without_a_row_leave_the_vocabulary_too(tmp_path):
    words = (*SPECIAL, *WORDS, "beyond")
    models = {
        "base": worded(tmp_path / "base", words=words, rows=64),
        "other": worded(tmp_path / "other", seed=2),
    }
    assert "beyond" not in ids_of(merged(tmp_path, models))


def test_roles_and_templates_that_differ_are_said(tmp_path, models):
    edit_json(
        models["chat"] / "tokenizer_config.json", eos_token="<|im_end|>", chat_template="{{ x }}"
    )
    said = warned(tmp_path, models)
    assert "chat: its eos token is <|im_end|> (id 65), base's is </s> (id 2)" in said
    assert "has a chat template, unlike base; `chat_template: chat` gives it" in said


def test_settings_of_added_tokens_that_differ_are_said(tmp_path, models):
    stored = json.loads((models["tool"] / "tokenizer.json").read_text())
    stored["added_tokens"][-1]["lstrip"] = True
    write_json(models["tool"] / "tokenizer.json", stored)
    assert "1 added tokens have other settings than in the result: <|im_end|>" in warned(
        tmp_path, models
    )


def test_the_ids_of_the_chosen_tokenizer_are_in_the_configurations(tmp_path, models):
    edit_json(models["chat"] / "config.json", eos_token_id=65, pad_token_id=64)
    for name, ends in (("base", 2), ("chat", [2, 65])):
        write_json(models[name] / "generation_config.json", {"eos_token_id": ends, "top_k": name})
    folder = merged(tmp_path, models, "chat")
    config = json.loads((folder / "config.json").read_text())
    assert [config[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [1, 65, 64]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 65], "top_k": "base"}


def test_lists_of_added_tokens_beside_the_tokenizer_are_edited(tmp_path, models):
    decoder = {"0": {"content": "<unk>", "special": True}}
    edit_json(models["base"] / "tokenizer_config.json", added_tokens_decoder=decoder)
    write_json(models["base"] / "added_tokens.json", {"<x>": 9})
    folder = merged(tmp_path, models)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["added_tokens_decoder"]["65"]["content"] == "<|im_end|>"
    listed = json.loads((folder / "added_tokens.json").read_text())
    assert listed == {"<x>": 9, "<|im_start|>": 64, "<|im_end|>": 65, "<|tool|>": 66}


def test_bytes_do_not_depend_on_a_second_run(tmp_path, models):
    one = merged(tmp_path, models)
    first = {path.name: path.read_bytes() for path in one.glob("[mtc]*")}
    shutil.rmtree(one)
    again = merged(tmp_path, models)
    assert first == {path.name: path.read_bytes() for path in again.glob("[mtc]*")}


@pytest.mark.parametrize("chosen", ["base", "union"])
def test_heads_that_are_tied_in_some_are_filled_from_the_embedding(tmp_path, chosen):
    models = {
        "base": worded(tmp_path / "base", seed=1),
        "tied": worded(tmp_path / "tied", CHATML, seed=2, tied=True),
    }
    folder = merged(tmp_path, models, chosen)
    assert tensors(folder)[HEAD].shape == tensors(folder)[EMBEDDING].shape
    if chosen == "union":
        assert_close(rows_of(folder, HEAD)["<|im_end|>"], rows_of(models["tied"])["<|im_end|>"])


def with_chat_tokens(name: str, folder: Path) -> Path:
    """A quickstart model with ChatML's tokens and rows for them."""
    shutil.copytree(QUICKSTART / name, folder)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    stored["added_tokens"] += [
        {"id": 1536 + n, "content": token, "special": True, **flags}
        for n, token in enumerate(CHATML)
    ]
    write_json(folder / "tokenizer.json", stored)
    edit_json(folder / "config.json", vocab_size=1538)
    from safetensors.torch import save_file

    found = tensors(folder)
    new = found[EMBEDDING][:2] * 0.5
    save_file(
        {**found, EMBEDDING: torch.cat([found[EMBEDDING], new])},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def test_a_real_union_speaks_and_splits_text_as_its_source_did(tmp_path):
    models = {
        "base": QUICKSTART / "base",
        "python": with_chat_tokens("python", tmp_path / "python"),
        "german": QUICKSTART / "german",
    }
    fields = {"method": "ties", "base": "base", "models": {"python": {}, "german": {}}}
    folder = merged(tmp_path, models, **fields)
    ours, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    source = AutoTokenizer.from_pretrained(models["base"])
    assert ours(TEXTS).input_ids == source(TEXTS).input_ids
    assert ours("<|im_start|>a<|im_end|>").input_ids[0] == 1536
    prompt = ours("def f(", return_tensors="pt").input_ids
    assert model.generate(prompt, max_new_tokens=4).shape == (1, prompt.shape[1] + 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "qwen2_5", "llama3", "gemma3"])
def test_real_tokenizers_give_the_same_ids_after_a_union(name, tmp_path):
    source = tokenizer(name)
    stored = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    count = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab_size()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    models = {}
    for n, (label, extra) in enumerate((("base", ()), ("chat", ("<|x-start|>", "<|x-end|>")))):
        folder = worded(tmp_path / label, rows=count + len(extra), seed=n)
        shutil.copytree(source, folder, dirs_exist_ok=True)
        added = [
            {"id": count + n, "content": token, "special": True, **flags}
            for n, token in enumerate(extra)
        ]
        new = {**stored, "added_tokens": [*stored["added_tokens"], *added]}
        write_json(folder / "tokenizer.json", new)
        models[label] = folder
    folder = merged(tmp_path, models)
    before, after = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (source, folder))
    for old, new in zip(before.encode_batch(TEXTS), after.encode_batch(TEXTS), strict=True):
        assert old.ids == new.ids
    assert after.encode("<|x-end|>", add_special_tokens=False).ids == [count + 1]
