"""Where models are scored, and in what dtype: the resources say so for all that a recipe asks."""

from __future__ import annotations

import json

import pytest
from askable import askable
from checkpoints import write_json
from command_line import command

from mergepipe.execute import Resources
from mergepipe.model.fingerprint import precision_of
from mergepipe.pipeline import LiveModels, prepare
from mergepipe.pipeline.candidates import Setting, candidate_scorer
from mergepipe.pipeline.late import LateModel
from mergepipe.pipeline.scoring import input_model
from mergepipe.recipe import read_document
from mergepipe.search.pool import Job

SEARCHED = {"method": "linear", "models": {"a": {"weight": {"search": [0, 1]}}, "b": {"weight": 1}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    for seed, name in enumerate("ab"):
        askable("llama", folder / name, seed=seed)
    (folder / "texts.jsonl").write_text('{"text": "def add(a, b):"}\n{"text": "Der Fuchs"}\n')
    body = {
        "mergepipe": 1,
        "models": {"a": "./a", "b": "./b"},
        "merge": {"method": "linear", "models": ["a", "b"]},
        "evaluate": [{"use": "bits_per_byte", "name": "bits", "data": "texts.jsonl"}],
    }
    write_json(folder / "recipe.yaml", body)
    tuned = {"merge": SEARCHED, "search": {"budget": 2, "batch": 1}}
    write_json(folder / "search.yaml", {**body, **tuned})
    return folder


def asked_in(model):
    module = model.module if hasattr(model, "module") else model._model.module
    return next(module.parameters()).device.type, str(next(module.parameters()).dtype)


@pytest.mark.parametrize(
    ("device", "dtype"), [(None, "float32"), ("cpu", "bfloat16"), ("meta", "float16")]
)
def test_inputs_and_merges_are_asked_where_the_resources_say(folder, device, dtype):
    resources = Resources(threads=1, device=device, score_dtype=dtype)
    ready = prepare(folder / "recipe.yaml", resources=resources)
    expected = device or "cpu", f"torch.{dtype}"
    assert asked_in(input_model(ready, "a")) == expected
    if device != "meta":  # which merges nothing
        assert asked_in(LiveModels(ready.resources).merged(ready, ready.plans[-1])) == expected


def test_candidates_are_scored_in_the_dtype_that_is_asked_for(folder):
    values = {}
    for dtype in ("float32", "bfloat16"):
        document = read_document(folder / "search.yaml")
        resources = Resources(threads=1, score_dtype=dtype)
        setting = Setting(document, 2, ("bits",), resources, (), frozenset(), None)
        values[dtype] = candidate_scorer(setting)(Job(0, (0.5,))).rows[0].value
    assert values["float32"] != values["bfloat16"]
    assert values["float32"] == pytest.approx(values["bfloat16"], rel=0.02)


def test_kinds_of_devices_and_dtypes_have_results_of_their_own(folder):
    models = [
        LateModel(folder / "a", "a", dtype=dtype, device=device)
        for dtype, device in (
            ("float32", "cpu"),
            ("bfloat16", "cpu"),
            ("float32", "meta"),
        )
    ]
    assert len({model.fingerprint for model in models}) == 3
    assert precision_of("float32", "cuda:0") == precision_of("float32", "cuda:1")


@pytest.mark.slow
def test_a_search_takes_the_option(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MERGEPIPE_CACHE", str(tmp_path / "results.db"))
    call = ("search", folder / "search.yaml", "--json", "--workers", 1)
    found = {}
    for dtype in ("float32", "bfloat16"):
        said = command(capsys, *call, "--out", tmp_path / dtype, "--score-dtype", dtype)
        assert said.status == 0, said.err
        rows = json.loads(said.out)["results"]
        found[dtype] = next(row["value"] for row in rows if row["model"] == "a")
    assert found["float32"] != found["bfloat16"]
    assert found["float32"] == pytest.approx(found["bfloat16"], rel=0.02)
