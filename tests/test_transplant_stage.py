"""Transplants as stages of recipes: then merges of models with other tokenizers."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from attempts import attempt
from material import glass
from peak import peak_bytes
from transplant_cases import words
from transplanted import EMBEDDING, HEAD, LETTERS, WORDS, report, set_tensor, tensors, write_model

from mergepipe.errors import InputError
from mergepipe.pipeline import merge, prepare
from mergepipe.transplant import making
from mergepipe.transplants import omp
from mergepipe.verify import verify

OTHERS = (*LETTERS, "ho", "▁sings", "cat")
MORE = ("ho", "hi", "he", "to", "ti", "te", "no")
LABELS = ("base", "expert", "target")
MIB = 1 << 20


@pytest.fixture
def folder(tmp_path) -> Path:
    """A base and its fine-tune with one tokenizer, and a model with another."""
    write_model(tmp_path / "base", WORDS, dtype="F32")
    write_model(tmp_path / "expert", WORDS, seed=1, dtype="F32")
    write_model(tmp_path / "target", OTHERS, seed=2, dtype="F32")
    return tmp_path


def write_recipe(folder: Path, name: str = "recipe.yaml", **parts) -> Path:
    models = {label: label for label in LABELS}
    recipe = {"mergepipe": 1, "models": models, "output": {"path": "merged"}, **parts}
    (folder / name).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder / name


def aligned(model: str = "expert", **more) -> dict:
    return {"transplant": {"model": model, "tokenizer": "target", "method": "subword", **more}}


def linear(*labels: str, **more) -> dict:
    return {"merge": {"method": "linear", "models": {x: {"weight": 1.0} for x in labels}, **more}}


def run(recipe: Path, **options) -> dict[str, torch.Tensor]:
    prepared = prepare(recipe, **options)
    merge(prepared, overwrite=True, sync=False)
    assert prepared.target is not None
    return tensors(prepared.target)


def test_models_of_two_tokenizers_are_merged_by_token(folder):
    stages = {"aligned": aligned(), "final": linear("target", "aligned")}
    merged = run(write_recipe(folder, stages=stages))[EMBEDDING]
    expert, target = (tensors(folder / name)[EMBEDDING] for name in ("expert", "target"))
    ho = torch.stack([expert[1 + WORDS.index(letter)] for letter in "ho"]).mean(0)
    rows = {"a": expert[1], "z": expert[26], "ho": ho}
    for text, theirs in rows.items():
        at = 1 + OTHERS.index(text)
        torch.testing.assert_close(merged[at], (theirs + target[at]) / 2, rtol=0, atol=1e-6)


def test_the_result_has_the_tokenizer_of_the_transplant(folder):
    # The first model, whose files the result gets, is the transplanted one.
    stages = {"aligned": aligned(), "final": linear("aligned", "target")}
    run(write_recipe(folder, stages=stages))
    theirs = (folder / "target" / "tokenizer.json").read_bytes()
    assert (folder / "merged" / "tokenizer.json").read_bytes() == theirs
    config = json.loads((folder / "merged" / "config.json").read_text())
    assert config["vocab_size"] == len(OTHERS) + 1


def test_without_a_transplant_the_same_merge_is_refused(folder):
    recipe = write_recipe(folder, **linear("expert", "target"))
    with pytest.raises(InputError, match="shape"):
        prepare(recipe)


def test_no_model_is_copied_for_a_stage_before_the_last(folder):
    stages = {"aligned": aligned(), "final": linear("target", "aligned")}
    prepared = prepare(write_recipe(folder, stages=stages))
    rows = 2 * (len(OTHERS) + 1) * 64 * 4
    assert prepared.disk_bytes == rows + prepared.plans[-1].bytes_written


def test_a_merge_may_be_transplanted(folder):
    stages = {"merged_first": linear("base", "expert"), "final": aligned("merged_first")}
    made = run(write_recipe(folder, stages=stages))
    base, expert = (tensors(folder / name)[EMBEDDING] for name in ("base", "expert"))
    torch.testing.assert_close(made[EMBEDDING][1], (base[1] + expert[1]) / 2, rtol=0, atol=1e-6)
    assert len(made[EMBEDDING]) == len(OTHERS) + 1


@pytest.mark.parametrize("method", ["omp", "subword", "common_interpolation"])
def test_the_same_combination_is_made_for_a_model_and_its_fine_tune(folder, method):
    # What is made is linear in the rows: so the task vector of a made row is that of its parts.
    one = {"merge": {"method": "task_arithmetic", "base": "b", "models": {"e": {"weight": 1.0}}}}
    same = {"method": method, **({"k": 4} if method == "omp" else {})}
    stages = {"b": aligned("base", **same), "e": aligned("expert", **same), "final": one}
    merged = run(write_recipe(folder, stages=stages))
    alone = run(write_recipe(folder, "alone.yaml", stages={"only": aligned("expert", **same)}))
    for name in (EMBEDDING, HEAD):
        torch.testing.assert_close(merged[name], alone[name], rtol=0, atol=1e-5)


def test_the_manifest_says_what_was_done_and_holds(folder):
    run(write_recipe(folder, seed=3, transplant=aligned(method="normal")["transplant"]))
    said = json.loads((folder / "merged" / "mergepipe.json").read_text())["transplants"]
    assert said["transplant"]["method"] == "normal"
    assert said["transplant"]["matches"]["missing"] == 3
    assert said["transplant"]["files"].keys() == {"tokenizer.json", "tokenizer_config.json"}
    verify(folder / "merged")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"method": "omq"}, "unknown transplant method 'omq'; did you mean 'omp'"),
        ({"k": 4}, "subword has no parameter 'k'"),
        ({"method": "omp", "k": 0}, "greater than 0, got 0"),
        ({"model": "exprt"}, "unknown model 'exprt'; did you mean 'expert'"),
        ({"tokenizer": "tarjet"}, "'tarjet' is neither a model nor a folder"),
        ({"tokenizer": "expert"}, "has this tokenizer already"),
        ({"roles": {"<none>": "a"}}, "has no token <none>"),
        ({"junk": "random"}, "must be 'mean' or 'zero'"),
    ],
)
def test_a_wrong_stage_is_refused_in_words(folder, change, what):
    with pytest.raises(InputError, match=what):
        prepare(write_recipe(folder, transplant=aligned(**change)["transplant"]))


@pytest.mark.parametrize(
    ("stages", "what"),
    [
        ({"one": aligned("two"), "two": aligned("one")}, "cycle"),
        ({"one": aligned(), "two": aligned("one")}, "by an earlier stage"),
        ({"one": aligned(), "two": linear("base", "expert")}, "no later stage uses this one"),
        ({"one": {**aligned(), **linear("base")}}, "exactly one of `merge:` and `transplant:`"),
        ({"expert": aligned()}, "a model has this name"),
    ],
)
def test_stages_that_do_not_fit_are_refused(folder, stages, what):
    with pytest.raises(InputError, match=what):
        prepare(write_recipe(folder, stages=stages))


def test_a_tokenizer_is_not_chosen_beside_a_transplant(folder):
    stages = {"aligned": aligned(), "final": linear("target", "aligned")}
    with pytest.raises(InputError, match="leave `tokenizer` out"):
        prepare(write_recipe(folder, stages=stages, tokenizer="target"))


def test_a_kill_does_no_harm_and_a_finished_table_is_not_made_again(folder):
    stages = {"aligned": aligned(method="omp", k=4), "final": linear("target", "aligned")}
    write_recipe(folder, stages=stages)
    whole = attempt(folder)
    assert whole.status == 0, whole.err
    expected = (folder / "merged" / "model.safetensors").read_bytes()
    made = []
    for die_at in (10, whole.calls // 3, whole.calls * 3 // 4):
        shutil.rmtree(folder / "merged")
        assert attempt(folder, die_at=die_at).status == -signal.SIGKILL
        rerun = attempt(folder)
        assert rerun.status == 0, rerun.err
        assert (folder / "merged" / "model.safetensors").read_bytes() == expected
        made.append(rerun.err.count("rows to make"))
    assert made[0] == 2
    assert made[-1] == 0


def test_a_changed_parameter_makes_the_rows_anew(folder):
    write_recipe(folder, transplant=aligned(method="omp", k=4)["transplant"])
    calls = attempt(folder).calls
    shutil.rmtree(folder / "merged")
    assert attempt(folder, die_at=calls * 3 // 4).status == -signal.SIGKILL
    write_recipe(folder, transplant=aligned(method="omp", k=2)["transplant"])
    rerun = attempt(folder)
    assert "the recipe changed: transplant.k was 4, is 2" in rerun.err
    assert rerun.err.count("rows to make") == 2


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two rows; gives the positions that omp is asked for, which may stop a run."""
    asked, method = [], omp.METHOD

    def fit(task, parameters):
        fitted = method.fit(task, parameters)

        def stopping(positions):
            if asked.count("stop") > 0 and len(asked) > 2:
                raise KeyboardInterrupt
            asked.append(tuple(positions))
            return fitted(positions)

        return stopping

    monkeypatch.setattr(making, "_BLOCK", 2)
    monkeypatch.setattr(making, "load_transplant", lambda _: replace(method, fit=fit))
    return asked


def interrupted(recipe: Path, asked: list) -> None:
    """A run that is stopped after two blocks of its first table."""
    asked.append("stop")
    with pytest.raises(KeyboardInterrupt, match="0 of 23 tensors are made"):
        run(recipe)
    assert asked == ["stop", (0, 1), (2, 3)]
    asked.clear()


def test_rows_that_were_made_before_an_interrupt_are_not_made_again(folder, small_blocks):
    write_model(folder / "target", (*LETTERS, *MORE), seed=2, dtype="F32")
    recipe = write_recipe(folder, transplant=aligned(method="omp", k=4)["transplant"])
    expected = run(recipe)
    said = report(folder / "merged")["tables"]
    shutil.rmtree(folder / "merged")
    small_blocks.clear()
    interrupted(recipe, small_blocks)
    found = run(recipe)
    assert small_blocks == [(4, 5), (6,), (0, 1), (2, 3), (4, 5), (6,)]  # then the other table
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert report(folder / "merged")["tables"] == said


def test_rows_that_were_damaged_after_an_interrupt_are_made_again(folder, small_blocks):
    write_model(folder / "target", (*LETTERS, *MORE), seed=2, dtype="F32")
    recipe = write_recipe(folder, transplant=aligned(method="omp", k=4)["transplant"])
    expected = run(recipe)
    shutil.rmtree(folder / "merged")
    small_blocks.clear()
    interrupted(recipe, small_blocks)
    (table,) = folder.rglob("*.rows")
    with table.open("r+b") as file:
        file.seek((1 + len(LETTERS) + 2) * 64 * 4)  # the third of the missing tokens' rows
        file.write(b"\0")
    found = run(recipe)
    assert small_blocks[:2] == [(2, 3), (4, 5)]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def peak_of_transplant(folder: Path, count: int) -> int:
    """The peak of giving `count` new words to a model of as many, in rows of 2048 numbers."""
    write_model(folder / "base", [f"w{n}x" for n in range(count)], hidden=2048, layers=1, tied=True)
    words(folder / "target", [f"w{n}y" for n in range(count)])
    code = f"""
from pathlib import Path
from mergepipe.execute import Resources
from mergepipe.pipeline import merge, prepare_transplant
folder = Path({str(folder)!r})
model, tokenizer, room = str(folder / "base"), str(folder / "target"), Resources(1, {32 * MIB})
merge(prepare_transplant(model, tokenizer, "zero", out=folder / "out", resources=room))
"""
    return peak_bytes(["-c", code])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_table(tmp_path):
    small, large = (peak_of_transplant(tmp_path / str(n), n) for n in (10_000, 40_000))
    table = 30_000 * 2048 * 4
    assert large - small < table / 2


def test_english_and_portuguese_meet_in_one_vocabulary(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for language in ("en", "pt"):
        (tmp_path / language).mkdir()
        glass(language, tmp_path / language)
    recipe = {
        "mergepipe": 1,
        "models": {"en": "en", "pt": "pt"},
        "stages": {
            "aligned": {"transplant": {"model": "en", "tokenizer": "pt", "method": "omp", "k": 16}},
            "final": linear("pt", "aligned"),
        },
        "output": {"path": "merged"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    started = time.monotonic()
    merge(prepare(tmp_path / "recipe.yaml"), sync=False)
    assert time.monotonic() - started < 60
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    asked = tokenizer("Era uma vez", return_tensors="pt", return_token_type_ids=False)
    said = model.generate(**asked, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert said.shape[1] > asked["input_ids"].shape[1]
    assert int(said.max()) < model.config.vocab_size
    with torch.inference_mode():
        assert model(**asked).logits.isfinite().all()
    verify(tmp_path / "merged")


def test_a_bias_of_the_head_goes_with_its_tokens(folder):
    bias = torch.arange(len(WORDS) + 1, dtype=torch.float32)
    set_tensor(folder / "expert", "lm_head.bias", bias)
    made = run(write_recipe(folder, transplant=aligned()["transplant"]))["lm_head.bias"]
    assert made[1:27].equal(bias[1:27])
    torch.testing.assert_close(made[27], bias.mean())
