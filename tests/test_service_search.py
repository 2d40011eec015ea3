"""A search on a merge service is the search that would run here, to the last bit."""

from __future__ import annotations

import csv
import json

import pytest
import yaml
from command_line import command
from merge_service import ADAPTERS, MODELS, QUICKSTART, serving, write_pool

from mergepipe.errors import InputError
from mergepipe.execute import Resources
from mergepipe.lora.composed import ComposedModels
from mergepipe.lora.composing import open_adapters
from mergepipe.pipeline import Searching, prepare, search
from mergepipe.search.evo import Preset, evolve
from mergepipe.search.remote import remote_pool

SEARCHED = {
    "merge": {
        "method": "task_arithmetic",
        "base": "base",
        "models": {
            "german": {"weight": {"search": [0, 1]}},
            "python": {"weight": {"search": [-0.5, 1], "points": 2}},
        },
    },
    "evaluate": [
        {"use": "bits_per_byte", "name": label, "limit": 2, "data": str(file)}
        for label, file in (
            (label, QUICKSTART / "heldout" / f"{label}.jsonl") for label in ("german", "python")
        )
    ],
    "search": {"optimizer": "CMA", "budget": 4, "minimize": ["german", "python"], "seed": 4},
}
NAMES = ("difference", "sum")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(write_pool(tmp_path_factory.mktemp("pool"), NAMES)) as found:
        yield found


@pytest.fixture
def trusted(served, monkeypatch):
    monkeypatch.setenv("MERGEPIPE_SERVICE_BASE_URL", served.url)
    return served


def found(folder, **fields):
    """The trials of a search, as they are written."""
    folder.mkdir()
    recipe = {"mergepipe": 1, **SEARCHED, "output": {"path": "out"}, **fields}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    prepared = prepare(folder / "recipe.yaml", resources=Resources(threads=1))
    done = search(prepared, Searching(workers=1))
    with (done.folder / "trials.csv").open() as stream:
        timeless = ("seconds", "merging", "begun", "ended")
        rows = [
            {key: value for key, value in row.items() if key not in timeless}
            for row in csv.DictReader(stream)
        ]
    return rows, json.loads((done.folder / "verdict.json").read_text()), done


def test_a_search_on_a_service_is_the_search_here_bit_for_bit(trusted, tmp_path):
    theirs, verdict, done = found(tmp_path / "service", service={"url": trusted.url})
    ours, local, _ = found(tmp_path / "local", models=MODELS)
    assert len(ours) == 4
    assert theirs == ours
    assert verdict == local
    best = yaml.safe_load(done.best.read_text())
    assert best["service"] == {"url": trusted.url}
    assert isinstance(best["merge"]["models"]["german"]["weight"], float)


def test_evo_merging_on_a_service_is_evo_merging_here_bit_for_bit(trusted):
    pairs = [("12+4=", "16\n"), ("47-8=", "39\n"), ("30+9=", "39\n")]
    small = Preset(denoising=7, scaling=13, population=6)

    def losses(composed):
        def evaluate(genomes):
            asked = [composed(one.keep, one.weights).loglikelihood(pairs) for one in genomes]
            return [-sum(one.logprob for one in scores) for scores in asked]

        return evaluate

    adapters = open_adapters({name: ADAPTERS / name for name in NAMES})
    local = ComposedModels(QUICKSTART / "base", adapters)
    pool = remote_pool(trusted.url)
    assert pool.adapters == NAMES
    ours = evolve(2, losses(local.composed), preset=small)
    assert evolve(2, losses(pool.composed), preset=small) == ours
    assert ours.loss < losses(local.composed)([ours.genome.__class__((1.0, 1.0), (0.5, 0.5))])[0]


def test_only_the_operator_sends_requests_into_this_machine(served, tmp_path, monkeypatch):
    monkeypatch.delenv("MERGEPIPE_SERVICE_BASE_URL", raising=False)
    with pytest.raises(InputError, match="export MERGEPIPE_SERVICE_BASE_URL"):
        found(tmp_path / "service", service={"url": served.url})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"models": MODELS}, "'models' cannot be said to a service"),
        ({"tokenizer": "union"}, "'tokenizer' cannot be said"),
        ({"service": {"url": 3}}, "must be {url"),
        ({"service": {"url": "http://127.0.0.1:1/v1", "key": "x"}}, "unknown field 'key'"),
    ],
)
def test_what_a_service_would_not_hear_is_refused_before_it_is_asked(tmp_path, fields, says):
    with pytest.raises(InputError, match=says):
        found(tmp_path / "service", **{"service": {"url": "http://127.0.0.1:1/v1"}, **fields})


def test_models_that_the_service_has_not_are_named(trusted, tmp_path):
    merge = {**SEARCHED["merge"], "base": "bose"}
    with pytest.raises(InputError, match="no model 'bose'; it has base, german"):
        found(tmp_path / "service", service={"url": trusted.url}, merge=merge)


def recipe_for(served, folder, **changes):
    data = {"mergepipe": 1, "service": {"url": served.url}, **SEARCHED, **changes}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return folder / "recipe.yaml"


def test_a_plan_says_what_would_be_searched_on_a_service(trusted, tmp_path, capsys):
    recipe = recipe_for(trusted, tmp_path)
    said = command(capsys, "plan", recipe, "--out", tmp_path / "out")
    assert said.status == 0, said.err
    assert f"service  {trusted.url} merges and scores" in said.out
    assert "search   4 candidates of 3 values by CMA, 7 at a time" in said.out
    assert "merge.models.python.weight.1: -0.5 to 1, from 0.25" in said.out
    found = json.loads(command(capsys, "plan", recipe, "--json").out)
    assert [gene["low"] for gene in found["search"]["genes"]] == [0, -0.5, -0.5]
    assert sorted(tmp_path.iterdir()) == [recipe]


@pytest.mark.parametrize("verb", ["run", "plan", "search"])
def test_a_recipe_for_a_service_that_searches_nothing_is_told_to(verb, trusted, tmp_path, capsys):
    fixed = {**SEARCHED["merge"], "models": {"german": {"weight": 0.5}}}
    recipe = recipe_for(trusted, tmp_path, merge=fixed, search=None)
    said = command(capsys, verb, recipe, "--out", tmp_path / "out")
    assert said.status == 2
    assert "recipe.yaml:2:1: service: weights stay with a service" in said.err
    assert "add a `search:` section" in said.err


@pytest.mark.slow
def test_run_searches_on_a_service_too(trusted, tmp_path, capsys):
    recipe = recipe_for(trusted, tmp_path)
    said = command(capsys, "run", recipe, "--out", tmp_path / "out", "--no-cache", "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["search"]["trials"] == 4
    assert (tmp_path / "out.search" / "best.yaml").is_file()
    assert not (tmp_path / "out").exists()
