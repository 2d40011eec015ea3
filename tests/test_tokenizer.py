"""Models whose ids mean different words are not averaged row by row."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit_json, llama, write_json

from mergepipe.errors import InputError
from mergepipe.pipeline import Prepared, prepare

WORDS = [f"word{n}" for n in range(317)]
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def tokenizer(
    words: list[str] = WORDS, added: tuple[str, ...] = ("<s>", "</s>", "<pad>"), kind: str = "BPE"
) -> dict[str, Any]:
    """A tokenizer.json of `words`, then `added` tokens."""
    tokens = [
        {"id": len(words) + n, "content": token, "special": True, **FLAGS}
        for n, token in enumerate(added)
    ]
    model = {"type": kind, "vocab": vocabulary(words), "merges": []}
    return {"added_tokens": tokens, "model": model}


def vocabulary(words: list[str]) -> dict[str, int]:
    return {word: n for n, word in enumerate(words)}


@pytest.fixture
def models(tmp_path) -> Path:
    """A base and an expert with the same vocabulary, and a recipe that averages them."""
    for seed, name in enumerate(("base", "expert")):
        write_json(llama(tmp_path / name, seed=seed) / "tokenizer.json", tokenizer())
    return tmp_path


def plan(folder: Path, *rules: dict[str, Any], **rest: Any) -> Prepared:
    merge = {"method": "linear", "models": {"base": {}, "expert": {}}, "where": list(rules)}
    models = {"base": "./base", "expert": "./expert"}
    recipe = {"mergepipe": 1, "models": models, "merge": merge, **rest}
    return prepare(write_json(folder / "recipe.yaml", recipe))


def refused(folder: Path, *rules: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        plan(folder, *rules)
    return str(caught.value)


def said(folder: Path) -> str:
    return "\n".join(plan(folder).warnings)


def test_the_same_vocabulary_needs_no_word(models):
    assert "token" not in said(models)


def test_the_same_vocabulary_written_otherwise_needs_no_word(models):
    write_json(models / "expert" / "tokenizer.json", tokenizer() | {"version": "1.0"})
    assert "token" not in said(models)


def test_models_without_tokenizer_json_are_passed_over(models):
    (models / "expert" / "tokenizer.json").unlink()
    assert "token" not in said(models)
    (models / "base" / "tokenizer.json").unlink()
    assert "tokenizer differs" not in said(models)


def test_shuffled_ids_are_refused_with_their_number(models):
    shuffled = [*reversed(WORDS[:123]), *WORDS[123:]]
    write_json(models / "expert" / "tokenizer.json", tokenizer(shuffled))
    message = refused(models)
    # The middle one of 123 stays where it was.
    assert "expert/tokenizer.json: tokenizer differs from base's: 122 of 320 tokens" in message
    assert "0 is word0, here word122" in message
    assert "would mix words" in message


def test_taking_embedding_and_head_from_one_model_is_a_decision(models):
    write_json(models / "expert" / "tokenizer.json", tokenizer(WORDS[::-1]))
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    assert plan(models, {"tensors": names, "take": "base"}).plans
    assert "tokenizer differs" in refused(models, {"tensors": names[:1], "take": "base"})


def test_rows_of_one_model_with_the_tokenizer_of_another_are_refused(models):
    write_json(models / "expert" / "tokenizer.json", tokenizer(WORDS[::-1]))
    rule = {"tensors": ["model.embed_tokens.weight", "lm_head.weight"], "take": "expert"}
    assert "expert/tokenizer.json: tokenizer differs from base's" in refused(models, rule)
    assert plan(models, rule, tokenizer="expert").plans


def test_the_tokenizer_that_the_recipe_chooses_is_what_counts(models):
    write_json(models / "expert" / "tokenizer.json", tokenizer(added=("<s>", "</s>")))
    warnings = "\n".join(plan(models, tokenizer="expert").warnings)
    assert "base/tokenizer.json: 1 tokens that expert lacks: <pad>" in warnings


def test_more_added_tokens_are_warned_of(models):
    write_json(models / "expert" / "tokenizer.json", tokenizer(added=("<s>", "</s>")))
    assert "1 tokens of base are missing: <pad>" in said(models)
    write_json(models / "base" / "tokenizer.json", tokenizer(added=("<s>",)))
    assert "1 tokens that base lacks: </s>" in said(models)


def test_a_reserved_token_with_a_new_name_is_warned_of(models):
    write_json(models / "expert" / "tokenizer.json", tokenizer(added=("<s>", "</s>", "<|im_end|>")))
    assert "1 tokens have another name than in base: <|im_end|>" in said(models)


def test_added_tokens_that_changed_places_are_refused(models):
    write_json(models / "expert" / "tokenizer.json", tokenizer(added=("</s>", "<s>", "<pad>")))
    assert "2 of 320 tokens have another id" in refused(models)


def test_another_kind_of_tokenizer_is_warned_of(models):
    write_json(models / "expert" / "tokenizer.json", tokenizer(kind="WordLevel"))
    assert "is a WordLevel tokenizer, base's is BPE" in said(models)


def test_unigram_vocabularies_are_lists_in_the_order_of_ids(models):
    for name, words in (("base", WORDS), ("expert", WORDS[::-1])):
        listed = {"type": "Unigram", "vocab": [[word, -1.0] for word in words]}
        write_json(models / name / "tokenizer.json", {"model": listed})
    assert "316 of 317 tokens have another id" in refused(models)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{ not json", "not valid JSON"),
        (json.dumps(tokenizer())[:999], "not valid JSON"),
        ("{}", "holds no vocabulary"),
        ("[]", "holds no vocabulary"),
        ('{"model": {"vocab": {"a": "b"}}}', "holds no vocabulary"),
        (json.dumps(tokenizer([*WORDS, *"abcdefgh"])), "320 rows"),
        (
            json.dumps({"model": {"vocab": {"a": 300, "b": 300}}}),
            "two tokens share id 300: a and b",
        ),
        (json.dumps({"model": {"vocab": {"a": 99999}}}), "up to id 99999"),
    ],
)
def test_a_broken_tokenizer_is_a_fault_of_its_file(models, text, words):
    (models / "expert" / "tokenizer.json").write_text(text, encoding="utf-8")
    message = refused(models)
    assert message.startswith("expert/tokenizer.json: ")
    assert words in message


def test_one_token_more_than_rows_is_met_with_in_real_models(models):
    write_json(
        models / "expert" / "tokenizer.json", tokenizer(added=("<s>", "</s>", "<pad>", "<i>"))
    )
    assert "1 tokens that base lacks: <i>" in said(models)


def test_a_broken_tokenizer_config_is_found_before_the_merge(models):
    (models / "expert" / "tokenizer_config.json").write_text("{", encoding="utf-8")
    assert refused(models).startswith("expert/tokenizer_config.json: not valid JSON")


def test_what_would_settle_it_is_said(models):
    write_json(models / "expert" / "tokenizer.json", tokenizer(WORDS[::-1]))
    assert "`tokenizer: union` or `tokenizer: base` matches rows by token" in refused(models)
    write_json(models / "expert" / "tokenizer.json", tokenizer([f"other{n}" for n in range(317)]))
    message = refused(models)
    assert "they share 1% of base's tokens" in message
    assert "give expert the tokenizer of base in a `transplant` stage" in message


def test_tokens_that_are_the_same_bytes_are_not_refused_for_their_spelling(models):
    words = [f"▁word{n}" for n in range(317)]
    for name, spelled in (("base", words), ("expert", [f"Ġ{word[1:]}" for word in words])):
        decoder = {"type": "ByteLevel" if name == "expert" else "Metaspace"}
        write_json(models / name / "tokenizer.json", tokenizer(spelled) | {"decoder": decoder})
    assert "differs" not in said(models)


def test_files_that_disagree_on_the_end_of_text_are_warned_of(models):
    write_json(models / "expert" / "tokenizer_config.json", {"eos_token": "</s>"})
    write_json(models / "expert" / "special_tokens_map.json", {"eos_token": {"content": "<pad>"}})
    edit_json(models / "expert" / "config.json", eos_token_id=3)
    warnings = said(models)
    assert "expert: its files disagree on the eos token" in warnings
    for words in (
        "tokenizer_config.json says </s> (id 318)",
        "special_tokens_map.json says <pad> (id 319)",
        "config.json says word3 (id 3)",
    ):
        assert words in warnings


def test_another_end_of_text_than_the_bases_is_warned_of(models):
    for name, end in (("base", "</s>"), ("expert", "<pad>")):
        write_json(models / name / "tokenizer_config.json", {"eos_token": end})
        edit_json(models / name / "config.json", eos_token_id=None)
    assert "expert: its eos token is <pad> (id 319), base's is </s> (id 318)" in said(models)


def test_an_end_of_text_that_no_id_has_is_warned_of(models):
    write_json(models / "expert" / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    words = "tokenizer_config.json names <|im_end|> as its eos token, and no id has it"
    assert words in said(models)


def test_one_of_several_ends_of_text_is_no_disagreement(models):
    for name in ("base", "expert"):
        write_json(models / name / "tokenizer_config.json", {"eos_token": "</s>"})
        edit_json(models / name / "config.json", eos_token_id=[318, 319])
    assert "eos" not in said(models)


def test_no_code_of_a_model_is_run_and_no_template_rendered(models):
    trap = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()"
    (models / "expert" / "tokenization_trap.py").write_text(trap, encoding="utf-8")
    template = "{{ cycler.__init__.__globals__.os.system('touch ran') }}"
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_trap.Trap", None]},
        "tokenizer_class": "Trap",
        "chat_template": template,
    }
    write_json(models / "expert" / "tokenizer_config.json", settings)
    assert "names custom code (auto_map), which is not run" in said(models)
    assert not list(models.rglob("*ran"))


def test_a_huge_vocabulary_for_a_small_embedding_is_refused_quickly(models):
    words = [f"token{n}" for n in range(200_000)]
    write_json(models / "expert" / "tokenizer.json", tokenizer(words))
    began = time.process_time()
    message = refused(models)
    assert "200003 tokens up to id 200002, but the embedding has 320 rows" in message
    assert time.process_time() - began < 3.0


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_broken_file_beside_the_same_vocabulary_is_a_fault_of_it(models, file):
    (models / "expert" / file).write_text("{", encoding="utf-8")
    assert refused(models).startswith(f"expert/{file}: not valid JSON")


def test_two_large_vocabularies_are_compared_in_half_a_second(tmp_path):
    words = [f"token{n}" for n in range(150_000)]
    for name in ("base", "expert"):
        edit_json(llama(tmp_path / name, vocab=150_003, hidden=8) / "config.json")
        write_json(tmp_path / name / "tokenizer.json", tokenizer(words))
    began = time.process_time()
    plan(tmp_path)
    alike = time.process_time() - began
    write_json(tmp_path / "expert" / "tokenizer.json", tokenizer(words, added=("<s>",)))
    began = time.process_time()
    assert "2 tokens of base are missing" in said(tmp_path)
    assert time.process_time() - began - alike < 1.0
