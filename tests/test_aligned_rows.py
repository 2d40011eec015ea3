"""Tables whose rows are put in another order as they are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from attempts import attempt
from checkpoints import edit_json, write_json, write_safetensors
from merges import tensors
from peak import peak_bytes
from torch.testing import assert_close
from worded import EMBEDDING, HEAD, SPECIAL, WORDS, planned, rows_of, worded

from mergepipe.checkpoint import read_range
from mergepipe.errors import InputError
from mergepipe.pipeline import merge, prepare

CHATML = ("<|im_start|>", "<|im_end|>")
MIB = 1 << 20


@pytest.fixture
def models(tmp_path) -> dict[str, Path]:
    """Three orders of the same words, and added tokens that some lack."""
    odd = (*SPECIAL, *WORDS[::2], *WORDS[1::2])
    return {
        "base": worded(tmp_path / "base", seed=1),
        "odd": worded(tmp_path / "odd", CHATML, words=odd, seed=2),
        "back": worded(tmp_path / "back", CHATML[1:], words=(*SPECIAL, *WORDS[::-1]), seed=3),
    }


def inputs(folder, models, tokenizer, name=EMBEDDING):
    steps = planned(folder, models, tokenizer).plans[0].steps
    step = next(step for step in steps if step.name == name)
    return {one.label: one.stored for one in step.inputs}


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_any_run_is_a_run_of_the_whole(tmp_path, models, name):
    choice = {"source": "union", "pad_to_multiple_of": 16}
    for stored in inputs(tmp_path, models, choice, name).values():
        assert stored.shape == (80, 32)
        whole = read_range(stored, 0, stored.numel)
        draw = np.random.default_rng(0)
        for _ in range(200):
            start, stop = sorted(draw.integers(0, stored.numel + 1, 2).tolist())
            assert torch.equal(read_range(stored, start, stop), whole[start:stop])


def test_each_model_has_its_own_row_of_every_word_that_it_has(tmp_path, models):
    for label, stored in inputs(tmp_path, models, "union").items():
        table = read_range(stored, 0, stored.numel).reshape(stored.shape)
        own = rows_of(models[label])
        united = {one: n for n, one in enumerate((*SPECIAL, *WORDS, *CHATML))}
        for token, row in own.items():
            assert torch.equal(table[united[token]], row), token


def test_a_row_that_a_model_lacks_is_the_only_one_that_there_is_or_the_mean(tmp_path, models):
    found = inputs(tmp_path, models, "union")["base"]
    table = read_range(found, 0, found.numel).reshape(found.shape)
    odd, back = (rows_of(models[label]) for label in ("odd", "back"))
    assert torch.equal(table[64], odd[CHATML[0]])
    assert_close(table[65], (odd[CHATML[1]] + back[CHATML[1]]) / 2)


def test_the_base_of_a_merge_comes_first(tmp_path, models):
    fields = {"method": "task_arithmetic", "base": "odd", "models": ["base", "back"]}
    step = planned(tmp_path, models, "back", **fields).plans[0].steps[0]
    for one in step.inputs:
        table = read_range(one.stored, 0, one.stored.numel).reshape(one.stored.shape)
        own = rows_of(models[one.label])
        wanted = own.get(CHATML[1], rows_of(models["odd"])[CHATML[1]])
        assert torch.equal(table[64], wanted)


def test_models_of_several_dtypes_share_rows_exactly(tmp_path):
    models = {
        "base": worded(tmp_path / "base", dtype="BF16"),
        "chat": worded(tmp_path / "chat", CHATML, dtype="F32", seed=2),
    }
    fields = {"method": "task_arithmetic", "base": "base", "models": {"chat": {"weight": 0.5}}}
    folder = merge(planned(tmp_path, models, "union", **fields)).folder
    table = tensors(folder)[EMBEDDING]
    assert table.dtype == torch.bfloat16
    assert torch.equal(table[65], rows_of(models["chat"])[CHATML[1]].bfloat16())


def test_biases_of_heads_follow_the_words(tmp_path, models):
    for n, folder in enumerate(models.values()):
        found = tensors(folder)
        bias = torch.arange(len(found[HEAD]), dtype=torch.float32) + 100 * n
        write_safetensors(folder / "model.safetensors", found | {"lm_head.bias": bias})
    folder = merge(planned(tmp_path, models, "union")).folder
    mean = sum(rows_of(one, "lm_head.bias")["_tok_10"] for one in models.values()) / 3
    assert_close(rows_of(folder, "lm_head.bias")["_tok_10"], mean)


def test_another_tensor_as_long_as_the_vocabulary_is_refused_unless_taken(tmp_path, models):
    for folder in models.values():
        found = tensors(folder)
        odd = torch.zeros(len(found[EMBEDDING]), 5)
        write_safetensors(folder / "model.safetensors", found | {"model.embed_more.weight": odd})
    with pytest.raises(InputError, match="as long as the vocabulary, 64"):
        planned(tmp_path, models, "base")
    rule = {"tensors": "model.embed_more.*", "take": "base"}
    assert planned(tmp_path, models, "base", where=[rule]).plans


def test_an_adapter_on_the_embedding_is_applied_before_rows_are_moved(tmp_path, models):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens"]}
    write_json(adapter / "adapter_config.json", fields)
    draw = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, 65, generator=draw), torch.randn(32, 2, generator=draw)
    prefix = "base_model.model.model.embed_tokens.lora_embedding_"
    write_safetensors(adapter / "adapter_model.safetensors", {f"{prefix}A": a, f"{prefix}B": b})
    recipe = json.loads(write_recipe(tmp_path, models).read_text())
    recipe["models"]["back"] = {"path": str(models["back"]), "adapter": str(adapter)}
    folder = merge(prepare(write_json(tmp_path / "recipe.yaml", recipe))).folder
    changed = tensors(models["back"])[EMBEDDING] + 2 * (b @ a).T
    word = SPECIAL + WORDS[::-1]
    mean = rows_of(models["base"])["_tok_10"] + rows_of(models["odd"])["_tok_10"]
    mean = (mean + changed[word.index("_tok_10")]) / 3
    assert_close(rows_of(folder)["_tok_10"], mean)


def write_recipe(folder: Path, models: dict[str, Path], **fields) -> Path:
    recipe = {
        "mergepipe": 1,
        "models": {label: str(path) for label, path in models.items()},
        "merge": {"method": "ties", "base": "base", "models": ["odd", "back"]},
        "tokenizer": {"source": "union", "pad_to_multiple_of": 16},
        "output": {"path": "merged"},
    }
    if "models" not in fields:
        recipe["merge"] = {"method": "linear", "models": list(models)}
        recipe["tokenizer"] = "union"
    return write_json(folder / "recipe.yaml", recipe | {k: v for k, v in fields.items() if v})


STAGES = {
    "first": {"merge": {"method": "linear", "models": ["base", "odd"]}},
    "second": {"merge": {"method": "linear", "models": ["first", "back"]}},
}


def test_stages_share_one_vocabulary(tmp_path, models):
    write_recipe(tmp_path, models)
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    del recipe["merge"]
    folder = merge(
        prepare(write_json(tmp_path / "recipe.yaml", recipe | {"stages": STAGES}))
    ).folder
    base, odd, back = (rows_of(models[one])["_tok_11"] for one in models)
    assert_close(rows_of(folder)["_tok_11"], ((base + odd) / 2 + back) / 2)


def test_a_run_that_was_killed_goes_on_with_the_same_bytes(tmp_path, models):
    write_recipe(tmp_path, models)
    assert attempt(tmp_path).status == 0
    whole = (tmp_path / "merged" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "merged")
    calls = 60
    assert attempt(tmp_path, die_at=calls).status < 0
    done = attempt(tmp_path)
    assert (done.status, "going on" in done.err) == (0, True)
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == whole


def test_another_tokenizer_makes_a_killed_run_start_over(tmp_path, models):
    write_recipe(tmp_path, models)
    assert attempt(tmp_path, die_at=60).status < 0
    stored = json.loads((models["odd"] / "tokenizer.json").read_text())
    stored["added_tokens"][-1]["content"] = "<|other|>"
    write_json(models["odd"] / "tokenizer.json", stored)
    done = attempt(tmp_path)
    assert "starting over: the tokenizer of the result changed" in done.err


def test_threads_and_memory_do_not_change_a_byte(tmp_path, models):
    file = write_recipe(tmp_path, models)
    found = []
    for n, (threads, memory) in enumerate(((1, 64 * MIB), (2, None))):
        from mergepipe.execute import Resources

        out = tmp_path / f"out{n}"
        merge(prepare(file, out=out, resources=Resources(threads, memory)))
        found.append((out / "model.safetensors").read_bytes())
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_large_table_is_never_in_memory(tmp_path):
    """128 000 words of 2 048 numbers: 0.5 GB a model in bf16, in two orders, in 512 MiB."""
    count, hidden = 128_000, 2_048
    words = [*SPECIAL, *(f"w{n}" for n in range(count - 3))]
    models = {}
    for n, (label, order) in enumerate((("base", words), ("back", [*SPECIAL, *words[:2:-1]]))):
        folder = models[label] = worded(tmp_path / label, words=order, rows=64, seed=n)
        norm = "model.layers.0.input_layernorm.weight"
        write_sparse(folder, {EMBEDDING: (count, hidden), norm: (hidden,)})
        edit_json(
            folder / "config.json",
            vocab_size=count,
            hidden_size=hidden,
            num_hidden_layers=1,
            tie_word_embeddings=True,
        )
    file = write_recipe(tmp_path, models)
    options = ["--max-memory", "512MiB", "--threads", "2"]
    peak = peak_bytes(["-m", "mergepipe", "run", str(file), *options])
    plain = peak_bytes(["-m", "mergepipe", "plan", str(file)])
    assert peak < max(plain, 700 * MIB) + 300 * MIB
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size > 500_000_000


def write_sparse(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    from test_memory import header_of

    header, size = header_of(shapes)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
