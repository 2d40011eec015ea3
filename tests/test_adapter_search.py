"""Searches whose candidates are adapters that a server loads; the server is a real one."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from api_server import serving as scripted
from merge_service import ADAPTERS, QUICKSTART, RECIPES, serving

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.evaluate import Settings, score
from mergepipe.execute import Resources
from mergepipe.lora.composed import ComposedModels
from mergepipe.lora.composing import open_adapters
from mergepipe.model.api import Limits, api_model
from mergepipe.pipeline import Searching, compare, prepare, search
from mergepipe.pipeline.adapter_serving import addressed_compositions
from mergepipe.search.adapter_server import AdapterServer
from mergepipe.search.evo import Preset, evolve

NAMES = ("sum", "python")
PAIRS = [("12+4=", "16\n"), ("47-8=", "39\n")]
QUICK = Limits(attempts=2, backoff_seconds=0.01, read_seconds=0.3, total_seconds=0.5)
LINES = (RECIPES / "search" / "evo" / "assertions.jsonl").read_text().splitlines(keepends=True)
SEARCHED = {
    "merge": {
        "method": "lora_composition",
        "models": {
            "sum": {"weight": {"search": [-1, 1], "init": 0.5}, "density": 0.9},
            "python": {"weight": {"search": [-1, 1], "init": 0.5}},
        },
    },
    "evaluate": [
        {
            "use": "bits_per_byte",
            "name": "assertions",
            "data": "data.jsonl",
            "split": {"search": 2, "holdout": 2},
        }
    ],
    "search": {"optimizer": "CMA", "budget": 4, "seed": 3, "finalists": 1},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of the quickstart base; one adapter of somebody else is loaded and in its folder."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(ADAPTERS / "series", folder / "adapters" / "mergepipe-mine")
    pool = {"pool": 1, "base": "base", "models": {"base": str(QUICKSTART / "base")}}
    limits = {"requests_per_minute": 100_000}
    said = yaml.safe_dump({**pool, "load_from": "./adapters", "limits": limits})
    (folder / "pool.yaml").write_text(said)
    with serving(folder / "pool.yaml") as found:
        found.folder = folder / "adapters"
        body = {"lora_name": "mergepipe-mine", "lora_path": "mergepipe-mine"}
        assert found.post("/v1/load_lora_adapter", body).status_code == 200
        yield found


@pytest.fixture
def trusted(served, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_BASE_URL", served.url)
    monkeypatch.setenv("MERGEPIPE_CACHE", str(tmp_path / "cache.db"))
    return served


def left(served):
    """What is loaded on the server, and what is in its folder."""
    listed = served.ask("GET", "/v1/models").json()["data"]
    return [one["id"] for one in listed], sorted(one.name for one in served.folder.iterdir())


CLEAN = (["base", "mergepipe-mine"], ["mergepipe-mine"])


def recipe_of(folder, served, **fields):
    folder.mkdir()
    (folder / "data.jsonl").write_text("".join(LINES[:7]))
    recipe = {
        "mergepipe": 1,
        "adapter_server": {"model": "base", "folder": str(served.folder)},
        "models": {name: str(ADAPTERS / name) for name in NAMES},
        **SEARCHED,
        "output": {"path": "out"},
        **fields,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / "recipe.yaml"


def prepared_of(folder, served, **fields):
    return prepare(recipe_of(folder, served, **fields), resources=Resources(threads=1))


def trials(folder):
    timeless = ("seconds", "merging", "begun", "ended")
    with (folder / "out.search" / "trials.csv").open() as stream:
        rows = csv.DictReader(stream)
        return [{k: v for k, v in row.items() if k not in timeless} for row in rows]


def test_a_search_on_a_server_finds_the_losses_that_are_found_here(trusted, tmp_path):
    prepared = prepared_of(tmp_path / "a", trusted)
    done = search(prepared, Searching())
    pool = open_adapters({name: ADAPTERS / name for name in NAMES})
    local = ComposedModels(QUICKSTART / "base", pool)
    for trial in done.trials:
        weights = dict(zip((gene.name for gene in done.genes), trial.values, strict=True))
        chosen = [weights[f"merge.models.{name}.weight"] for name in NAMES]
        found = score(
            [local.composed([0.9, 1.0], chosen)], prepared.evaluations, Settings(part="search")
        )
        assert trial.losses[0] == pytest.approx(found.rows[0].value, rel=1e-6)
    assert len(done.trials) == 4
    assert len({trial.losses for trial in done.trials}) == 4
    assert left(trusted) == CLEAN
    assert {gain.over for gain in done.verdict.gains} >= {
        "base"
    } or done.verdict.best_input in NAMES
    best = prepare(done.best, out=tmp_path / "best")
    rows = compare(best, notice=lambda _: None).rows
    assert {row.model for row in rows} == {"base", *NAMES, "merged"}
    written = open_adapters({"best": tmp_path / "best"})
    assert written.rank == 4
    assert left(trusted) == CLEAN


@pytest.mark.slow
def test_after_a_kill_the_search_goes_on_and_what_it_left_is_cleaned_up(trusted, tmp_path):
    whole = recipe_of(tmp_path / "whole", trusted)
    search(prepare(whole, resources=Resources(threads=1)), Searching())
    killed = recipe_of(tmp_path / "killed", trusted)
    command = [sys.executable, "-m", "mergepipe", "search", str(killed), "--threads", "1"]
    environment = {**os.environ, "MERGEPIPE_CACHE": str(tmp_path / "other.db")}
    driver = subprocess.Popen(
        command,
        env=environment,
        cwd=killed.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in driver.stderr:
        if "trial 1 " in line:
            break
    while not [name for name in left(trusted)[0] if name not in CLEAN[0]]:
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=20)
    time.sleep(1)  # its worker goes too
    assert left(trusted) != CLEAN
    again = subprocess.run(
        [*command, "--no-merge"],
        env=environment,
        cwd=killed.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "of a run that was cut off" in again.stderr
    assert trials(killed.parent) == trials(whole.parent)
    assert left(trusted) == CLEAN


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_loaded(trusted, tmp_path):
    recipe = recipe_of(tmp_path / "a", trusted)
    driver = subprocess.Popen(
        [sys.executable, "-m", "mergepipe", "search", str(recipe), "--no-cache"],
        cwd=recipe.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in driver.stderr:
        if "trial 1 " in line:
            break
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "run the same command again" in said
    assert left(trusted) == CLEAN


def test_evo_merging_on_a_server_is_evo_merging_here(trusted, tmp_path):
    small = Preset(denoising=5, scaling=5, population=4)
    folders = {name: ADAPTERS / name for name in NAMES}
    address = f"api:{trusted.url}#base"
    made = addressed_compositions(address, folders, trusted.folder, None, tmp_path / "out")

    def losses(composed):
        def evaluate(genomes):
            asked = [composed(one.keep, one.weights).loglikelihood(PAIRS) for one in genomes]
            return [-sum(one.logprob for one in scores) for scores in asked]

        return evaluate

    with made.session():
        theirs = evolve(2, losses(made.composed), preset=small)
    local = ComposedModels(QUICKSTART / "base", open_adapters(folders))
    ours = evolve(2, losses(local.composed), preset=small)
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-6)
    assert theirs.genome == ours.genome
    assert left(trusted) == CLEAN


def server_of(url, folder, **options):
    """A server in its own right; what it is asked is logged by the script behind it."""
    host = url.split("/")[2]
    key = options.pop("key_env", None)
    base = api_model(url, "base", key_env=key, trusted_hosts=[host], limits=QUICK)
    found = AdapterServer(base, folder, str(folder), "mergepipe-0123456789ab", limits=QUICK)
    found.sleep = lambda _: None
    return found


def written(place: Path):
    place.mkdir()
    (place / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("step", "error", "requests", "says"),
    [
        ("400", InputError, 1, "status 400: .*scripted 400"),
        ("404", EnvironmentFault, 1, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ("401", EnvironmentFault, 1, "check the key"),
        ("403", EnvironmentFault, 1, "seen_as"),
        ("500", EnvironmentFault, 2, "scripted 500.*tried 2 times"),
        ("hang", EnvironmentFault, 2, "within"),
        ("reset", EnvironmentFault, 2, "no answer"),
    ],
)
def test_a_server_that_does_not_load_is_a_failed_trial_or_a_stop(
    tmp_path, step, error, requests, says
):
    with scripted(step) as script:
        server = server_of(script.url, tmp_path)
        with pytest.raises(error, match=f"(?s){says}"):
            server.load(server.name("x"), written)
    assert [call.path for call in script.calls] == ["/v1/load_lora_adapter"] * requests
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_was_lost_does_not_load_an_adapter_twice(tmp_path):
    loaded = {"error": {"message": "The lora adapter has already been loaded."}}
    with scripted("reset", lambda _: (400, loaded), lambda _: (200, {})) as script:
        server = server_of(script.url, tmp_path)
        server.load(server.name("x"), written)
    routes = [call.path.rpartition("/")[2] for call in script.calls]
    assert routes == [*["load_lora_adapter"] * 2, "unload_lora_adapter", "load_lora_adapter"]
    tags = [call.headers["idempotency-key"] for call in script.calls]
    assert tags[0] == tags[1]
    assert len({*tags}) == 3


def test_only_the_latest_stay_loaded(tmp_path):
    with scripted(lambda _: (200, {})) as script:
        server = server_of(script.url, tmp_path)
        for name in ("a", "b", "a", "c"):
            server.load(server.name(name), written)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(map(server.name, "ac"))
    unloaded = [call.body for call in script.calls if "unload" in call.path]
    assert unloaded == [{"lora_name": server.name("b")}]


def test_what_others_wrote_is_never_deleted(tmp_path):
    with scripted("404") as script:
        server = server_of(script.url, tmp_path)
        mine = [f"mergepipe-0123456789ab-1a-{digit * 16}" for digit in "0123"]
        written(tmp_path / mine[0])
        written(tmp_path / mine[1])
        (tmp_path / mine[1] / "notes.txt").write_text("keep me")
        written(tmp_path / "elsewhere")
        (tmp_path / mine[2]).symlink_to(tmp_path / "elsewhere")
        written(tmp_path / "mergepipe-999999999999-1a-0000000000000000")
        written(tmp_path / f".{mine[3]}.partial")
        assert server.sweep() == 3
    assert {one.name for one in tmp_path.iterdir()} == {
        mine[1],
        "elsewhere",
        "mergepipe-999999999999-1a-0000000000000000",
    }
    assert (tmp_path / "elsewhere" / "adapter_config.json").exists()
    assert all("999999999999" not in str(call.body) for call in script.calls)


def test_a_server_that_has_forgotten_an_adapter_is_given_it_again(trusted, tmp_path):
    folders = {name: ADAPTERS / name for name in NAMES}
    address = f"api:{trusted.url}#base"
    made = addressed_compositions(address, folders, trusted.folder, None, tmp_path / "out")
    with made.session():
        model = made.composed([1.0, 1.0], [0.5, 0.25])
        before = model.loglikelihood(PAIRS)
        name = made.server.name(model.made_of)
        assert trusted.post("/v1/unload_lora_adapter", {"lora_name": name}).status_code == 200
        assert model.loglikelihood(PAIRS) == before
    assert left(trusted) == CLEAN


def test_two_searches_for_one_output_do_not_meet(trusted, tmp_path):
    folders = {name: ADAPTERS / name for name in NAMES}
    given = (f"api:{trusted.url}#base", folders, trusted.folder, None, tmp_path / "out")
    with (
        addressed_compositions(*given).session(),
        pytest.raises(InputError, match="the same search goes on"),
        addressed_compositions(*given).session(),
    ):
        pass


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"adapter_server": {"model": "base"}}, r"recipe.yaml:2:\d+: .*folder: required"),
        ({"adapter_server": {"model": "b", "folder": ".", "at": 1}}, "unknown field"),
        ({"adapter_server": "http://x"}, "adapter_server: .*must be"),
        ({"tokenizer": "union"}, "'tokenizer' has no meaning beside an adapter server"),
        ({"models": {"base": "./x", "sum": "./y"}}, r"without an adapter \(choose another label"),
        ({"models": {"sum": str(ADAPTERS / "sum")}}, "no adapter is named 'python'"),
        ({"models": {n: str(QUICKSTART / n) for n in ("sum", "python")}}, "does not exist"),
        ({"merge": {"method": "ties", "models": {}}}, "'ties' is none: .*lora_composition"),
        ({"merge": {"method": "lora_sum", "models": {"sum": {"density": 1}}}}, "unknown field"),
        (
            {"merge": {"method": "lora_composition", "models": {"sum": {"density": 2.0}}}},
            "density: must be less than or equal to 1, got 2.0",
        ),
    ],
)
def test_faults_of_a_recipe_are_named_with_their_places(trusted, tmp_path, fields, says):
    with pytest.raises(InputError, match=says):
        prepared_of(tmp_path / "a", trusted, **fields)


def test_only_the_operator_sends_requests_into_this_machine(served, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    there = {"model": "base", "folder": str(served.folder), "base_url": served.url}
    with pytest.raises(InputError, match="export OPENAI_BASE_URL"):
        prepared_of(tmp_path / "a", served, adapter_server=there)


def test_a_sum_of_adapters_is_asked_too(trusted, tmp_path):
    merge = {"method": "lora_sum", "models": {"sum": {"weight": 0.5}, "python": {}}, "rank": 6}
    prepared = prepared_of(tmp_path / "a", trusted, merge=merge, output={}, search=None)
    rows = compare(prepared, notice=lambda _: None).rows
    assert {row.model for row in rows} == {"base", *NAMES, "merged"}
    assert left(trusted) == CLEAN
