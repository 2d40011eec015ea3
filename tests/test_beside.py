"""Models of a recipe that are only asked: behind servers, scored beside its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from api_server import ANSWER, scoring, serving
from askable import askable
from checkpoints import write_json
from command_line import command
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from mergepipe.errors import InputError
from mergepipe.pipeline import prepare
from mergepipe.pipeline.search_setup import absolute

TEXTS = [{"text": "def add(a, b):\n"}, {"text": "Der Fuchs"}, {"text": "12+30=42\n"}]
PROMPTS = [{"prompt": "12+30=", "answer": "42"}, {"prompt": "7+8=", "answer": "15"}]
KEY = "sk-of-the-operator-0123456789"
BITS = {"use": "bits_per_byte", "name": "bits", "data": "texts.jsonl"}
SUMS = {"use": "exact_match", "name": "sums", "data": "sums.jsonl", "max_tokens": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        askable("llama", folder / name, seed=seed)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MERGEPIPE_CACHE", str(tmp_path / "results.db"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name, records in (("texts", TEXTS), ("sums", PROMPTS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return tmp_path


def recipe(folder, models, *, beside, **fields):
    found = {
        "mergepipe": 1,
        "models": {name: str(models / name) for name in "ab"},
        "merge": {"method": "linear", "models": ["a", "b"]},
        "evaluate": [BITS, SUMS],
        "beside": beside,
        **fields,
    }
    write_json(folder / "recipe.yaml", found)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def served(models):
    """The first of the recipe's models behind a server."""
    module = AutoModelForCausalLM.from_pretrained(models / "a", dtype="float32").eval()
    tokenizer = Tokenizer.from_file(str(models / "a" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None
    with scoring(module, tokenizer) as script:
        yield script


def results(said):
    rows = json.loads(said.out)["results"]
    return {(row["model"], row["name"]): row for row in reversed(rows)}


def test_a_served_model_is_scored_beside_the_others(capsys, monkeypatch, folder, models, served):
    monkeypatch.setenv("OPENAI_BASE_URL", served.url)
    prices = {"prompt": 1000.0, "generated": 2000.0}
    far = {"model": "tiny", "prefix": "<s>", "prices": prices, "budget": {"usd": 9.0}}
    file = recipe(folder, models, beside={"far": far})
    said = command(capsys, "run", file, "--out", folder / "out", "--json")
    assert said.status == 0, said.err
    found = results(said)
    assert [model for model, name in found if name == "bits"][::-1] == ["a", "b", "merged", "far"]
    assert found["far", "bits"]["value"] == pytest.approx(found["a", "bits"]["value"], abs=1e-5)
    assert found["far", "sums"]["value"] == found["a", "sums"]["value"]
    usage = found["far", "bits"]["usage"]
    tokens = usage["prompt_tokens"] + 2 * usage["generated_tokens"]
    assert usage["usd"] == pytest.approx(tokens / 1000)
    assert found["a", "bits"]["usage"]["usd"] == 0
    text = (folder / "out" / "results.jsonl").read_text("utf-8")
    kept = [json.loads(line) for line in text.splitlines()]
    assert {row["model"] for row in kept} == {"a", "b", "merged", "far"}


def test_only_what_is_named_is_asked_and_a_failure_costs_the_others_nothing(
    capsys, monkeypatch, folder, models
):
    with serving("404") as script:
        monkeypatch.setenv("OPENAI_BASE_URL", script.url)
        beside = {"far": {"model": "tiny", "only": ["sums"]}}
        file = recipe(folder, models, beside=beside)
        said = command(capsys, "run", file, "--out", folder / "out")
    assert said.status == 2
    (line,) = [line.split() for line in said.out.splitlines() if line.startswith("far")]
    assert line[1:] == ["–", "failed"]
    assert "sums of far" in said.err
    assert "bits of far" not in said.err
    assert (folder / "out" / "model.safetensors").is_file()


def test_comparisons_rank_merges_alone_and_show_a_served_model_last(
    capsys, monkeypatch, folder, models, served
):
    monkeypatch.setenv("OPENAI_BASE_URL", served.url)
    compare = {"half": {"method": "linear", "models": ["a", "b"]}}
    file = recipe(
        folder,
        models,
        merge=None,
        compare=compare,
        beside={"far": {"model": "tiny", "prefix": "<s>", "only": ["bits"]}},
        evaluate=[BITS],
    )
    body = json.loads(file.read_text())
    del body["merge"]
    write_json(file, body)
    said = command(capsys, "run", file, "--json")
    assert said.status == 0, said.err
    rows = json.loads(said.out)["results"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == ["a", "b", "half", "far"]
    kept = {row["model"]: row["value"] for row in rows if row["name"] == "kept"}
    assert kept["far"] == pytest.approx(kept["a"], abs=1e-3)


FAULTS = {
    "an unknown field": ({"modle": "m"}, "beside.far.modle: unknown field; did you mean 'model'"),
    "no model": ({}, "beside.far.model: required"),
    "a key": ({"model": "m", "key_env": "sk-proj-abcdefghijklmnopqrstuvwxyz012345"}, "secret"),
    "no variable": ({"model": "m", "key_env": "my key"}, "beside.far.key_env"),
    "an evaluation that is not there": (
        {"model": "m", "only": ["bit"]},
        "no evaluation is named 'bit'; did you mean 'bits'",
    ),
    "money without prices": ({"model": "m", "budget": {"usd": 1.0}}, "needs `prices`"),
    "no tokenizer": ({"model": "m", "tokenizer": "a", "max_length": 9}, "no tokenizer.json in"),
    "an address inside": (
        {"model": "m", "base_url": "http://169.254.169.254/v1"},
        "inside this machine or its network",
    ),
    "a file": ({"model": "m", "base_url": "file:///etc/passwd"}, "is no http address"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found_before_any_work(folder, models, name):
    entry, said = FAULTS[name]
    with pytest.raises(InputError) as error:
        prepare(recipe(folder, models, beside={"far": entry}))
    assert said in str(error.value)
    assert "sk-proj-abc" not in str(error.value)


def test_labels_are_those_of_no_other_model_and_there_is_something_to_ask(folder, models):
    entry = {"model": "m", "base_url": "https://192.0.2.1/v1", "key_env": None}
    for label in ("a", "merged"):
        with pytest.raises(InputError, match=f"'{label}' is the name of another"):
            prepare(recipe(folder, models, beside={label: entry}))
    with pytest.raises(InputError, match="nothing to ask it"):
        prepare(recipe(folder, models, beside={"far": entry}, evaluate=[]))


def test_a_served_model_cannot_be_merged(folder, models):
    merge = {"method": "linear", "models": ["a", "far"]}
    entry = {"model": "m", "base_url": "https://192.0.2.1/v1", "key_env": None}
    with pytest.raises(InputError, match="'far'"):
        prepare(recipe(folder, models, beside={"far": entry}, merge=merge))


def test_the_key_of_one_host_goes_to_no_other(folder, models, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-operator")
    entry = {"model": "m", "base_url": "https://example.com/v1"}
    with pytest.raises(InputError, match="is not meant for this host") as error:
        prepare(recipe(folder, models, beside={"far": entry}))
    assert "secret-of" not in str(error.value)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://example.com/v1")
    prepare(recipe(folder, models, beside={"far": entry}))


def test_a_refused_key_costs_one_request_in_the_whole_run(capsys, monkeypatch, folder, models):
    with serving("401") as script:
        monkeypatch.setenv("OPENAI_BASE_URL", script.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        file = recipe(folder, models, beside={"far": {"model": "tiny"}})
        said = command(capsys, "run", file, "--out", folder / "out")
    assert said.status == 2
    assert len(script.calls) == 1
    assert "check the key in OPENAI_API_KEY" in said.err


@pytest.mark.parametrize("step", ["echokey:400", "an answer"])
def test_the_key_is_in_no_file_and_nothing_that_is_said(capsys, monkeypatch, folder, models, step):
    def repeats(handler):
        text = f"your key is {handler.headers.get('authorization')}"
        return 200, {**ANSWER, "choices": [{"text": text, "message": {"content": text}}]}

    with serving(repeats if step == "an answer" else step) as script:
        monkeypatch.setenv("OPENAI_BASE_URL", script.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        beside = {"far": {"model": "tiny", "only": ["sums"]}}
        said = command(
            capsys, "run", recipe(folder, models, beside=beside), "--out", folder / "out", "--json"
        )
    assert any(KEY in call.headers.get("authorization", "") for call in script.calls)
    assert KEY not in said.out + said.err
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"results.db", "results.jsonl", "mergepipe.json"} <= {path.name for path in files}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_tuned_recipe_means_the_same_elsewhere(folder, models, monkeypatch):
    monkeypatch.chdir(folder)
    entry = {"model": "m", "key_env": None, "tokenizer": "tok", "max_length": 9}
    Path("tok").mkdir()
    Path("tok/tokenizer.json").write_text((models / "a" / "tokenizer.json").read_text())
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    ready = prepare(recipe(folder, models, beside={"far": entry}))
    moved = absolute(ready, ready.recipe.data, ready.evaluations)
    assert moved["beside"]["far"]["tokenizer"] == str((folder / "tok").resolve())
