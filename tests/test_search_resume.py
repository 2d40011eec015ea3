"""A search that is killed, for real, at any moment, and run again."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from toy_search import (
    BUDGET,
    evaluations,
    logged,
    loop_of,
    pool,
    quick_workers,
    rules,
    slow,
    start,
    steady,
    study_of,
    trials_of,
)

from mergepipe.errors import EnvironmentFault, InputError

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"


def told(trials):
    """What must be the same: what was asked for, and what came of it."""
    return [(one.number, one.values, one.state, one.losses) for one in trials]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return told(loop_of(tmp_path_factory.mktemp("unbroken")).run())


EVENTS = 4 * BUDGET  # before and after each trial is begun, and finished


def killed_and_resumed(folder, *moments):
    for moment in moments:
        driver = start(folder, moment)
        driver.join(60)
        assert driver.exitcode == -signal.SIGKILL
    driver = start(folder)
    driver.join(60)
    assert driver.exitcode == 0


@pytest.mark.parametrize("moment", [2, 17, 30])
def test_after_a_kill_the_search_goes_on_as_if_there_had_been_none(moment, unbroken, tmp_path):
    killed_and_resumed(tmp_path, moment)
    assert told(trials_of(tmp_path)) == unbroken
    repeated = len(evaluations(tmp_path)) - BUDGET
    assert repeated <= 1  # the one that was under way


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(1, EVENTS + 1))
def test_it_is_so_at_every_moment(moment, unbroken, tmp_path):
    killed_and_resumed(tmp_path, moment)
    assert told(trials_of(tmp_path)) == unbroken


def test_two_kills_are_no_worse_than_one(unbroken, tmp_path):
    killed_and_resumed(tmp_path, 12, 9)
    assert told(trials_of(tmp_path)) == unbroken
    assert len(evaluations(tmp_path)) <= BUDGET + 2


def test_a_kill_from_outside_at_a_random_moment_is_survived(unbroken, tmp_path):
    driver = start(tmp_path, wait=0.05)
    log = tmp_path / "log"
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        time.sleep(0.003)
    driver.kill()
    driver.join(60)
    killed_and_resumed(tmp_path)
    assert told(trials_of(tmp_path)) == unbroken


def test_a_search_that_is_done_evaluates_nothing_again(tmp_path):
    loop_of(tmp_path, evaluate=logged(tmp_path)).run()
    before = told(trials_of(tmp_path))
    again = loop_of(tmp_path, evaluate=lambda jobs: pytest.fail(str(jobs)) if jobs else iter(()))
    assert told(again.run()) == before
    assert len(evaluations(tmp_path)) == BUDGET


@pytest.mark.parametrize("first", [4, 6, 8])
def test_a_larger_budget_goes_on_as_if_it_had_been_larger_from_the_start(first, unbroken, tmp_path):
    loop_of(tmp_path, evaluate=logged(tmp_path), limits=rules(first)).run()
    loop_of(tmp_path, evaluate=logged(tmp_path), limits=rules(BUDGET)).run()
    assert told(trials_of(tmp_path)) == unbroken
    assert evaluations(tmp_path) == list(range(BUDGET))


def test_ngopt_keeps_the_plan_of_its_first_budget(tmp_path):
    first = told(loop_of(tmp_path, name="NGOpt", limits=rules(8), horizon=8).run())
    more = told(loop_of(tmp_path, name="NGOpt", limits=rules(20), horizon=8).run())
    assert more[:8] == first
    assert len(more) == 20


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_number_of_workers_changes_nothing(workers, unbroken, tmp_path):
    with quick_workers(), closing(pool(tmp_path, slow, 0.02, workers=workers)) as running:
        assert told(loop_of(tmp_path, evaluate=running.run).run()) == unbroken


def test_what_the_optimiser_asks_otherwise_is_refused(tmp_path):
    loop_of(tmp_path).run()
    with pytest.raises(InputError, match="trial 1 is not what the optimiser asks for now"):
        loop_of(tmp_path, seed=1).run()


SETUP = {"genes": [{"low": 0}], "search": {"seed": 0, "batch": 4}, "budget": 40}


def test_another_search_in_the_same_study_is_refused_with_what_differs(tmp_path):
    study_of(tmp_path).agree(SETUP)
    assert study_of(tmp_path).agree({**SETUP, "budget": 80})["budget"] == 40
    changed = {**SETUP, "search": {"seed": 1, "batch": 8}}
    with pytest.raises(InputError) as caught:
        study_of(tmp_path).agree(changed)
    for words in ("search.seed was 0, is 1", "search.batch was 4, is 8", "another folder"):
        assert words in str(caught.value)


def test_a_file_that_is_no_study_is_named(tmp_path):
    (tmp_path / "trials.db").write_bytes(b"no database" * 1000)
    with pytest.raises(EnvironmentFault, match=r"trials\.db.*not a database"):
        study_of(tmp_path)


def test_a_storage_that_refuses_a_write_stops_the_search_and_loses_nothing(unbroken, tmp_path):
    loop = loop_of(tmp_path, evaluate=logged(tmp_path))
    loop.rules = rules(8)
    loop.run()
    (tmp_path / "trials.db").chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        _fails_or_is_root(tmp_path)
    finally:
        tmp_path.chmod(0o700)
        (tmp_path / "trials.db").chmod(0o600)
    loop_of(tmp_path, evaluate=logged(tmp_path)).run()
    assert told(trials_of(tmp_path)) == unbroken


def _fails_or_is_root(folder):
    """Permissions do not bind root, for whom the search just goes on."""
    if os.geteuid():
        with pytest.raises(EnvironmentFault, match="cannot be kept"):
            loop_of(folder, evaluate=logged(folder)).run()


def test_steady_workers_leave_nothing_behind(tmp_path):
    with closing(pool(tmp_path, steady)) as running:
        loop_of(tmp_path, evaluate=running.run, limits=rules(4)).run()
        assert (tmp_path / "scratch").is_dir()
        processes = [one.process for one in running._workers]
    assert not any(process.is_alive() for process in processes)
    assert not (tmp_path / "scratch").exists()


RECIPE = {
    "mergepipe": 1,
    "models": {label: str(QUICKSTART / label) for label in ("base", "german")},
    "merge": {
        "method": "task_arithmetic",
        "base": "base",
        "models": {"german": {"weight": {"search": [0, 1]}}},
    },
    "evaluate": [
        {
            "use": "bits_per_byte",
            "data": str(QUICKSTART / "heldout" / "arithmetic_text.jsonl"),
            "limit": 8,
        }
    ],
    "search": {"optimizer": "CMA", "budget": 40},
}


def command_in(folder, out, *, budget=40, storage=None):
    """A search of real models, by the command line, in a process of its own."""
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    code = "from mergepipe.cli import main; main()"
    words = ["search", "recipe.yaml", "--out", out, "--no-merge", "--no-cache"]
    words += ["--workers", "1", "--threads", "1", "--budget", str(budget)]
    elsewhere = {} if storage is None else {"MERGEPIPE_STORAGE": storage}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | elsewhere,
        stderr=subprocess.PIPE,
        text=True,
    )


def real_trials(folder, out):
    file = folder / f"{out}.search" / "trials.json"
    trials = json.loads(file.read_text())["trials"]
    return [(one["values"], one["losses"]) for one in trials]


def wait_for_trials(folder, out, count, process):
    file = folder / f"{out}.search" / "trials.db"
    while process.poll() is None:
        if file.exists():
            try:
                with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as opened:
                    query = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"
                    (found,) = opened.execute(query).fetchone()
            except sqlite3.OperationalError:
                found = 0
            if found >= count:
                return
        time.sleep(0.02)
    pytest.fail(f"it ended: {process.communicate()[1]}")


@pytest.mark.slow
def test_a_search_of_real_models_goes_on_after_a_kill_and_after_an_interruption(tmp_path):
    whole = command_in(tmp_path, "whole")
    assert whole.wait(300) == 0, whole.communicate()[1]
    whole.communicate()
    killed = command_in(tmp_path, "cut")
    wait_for_trials(tmp_path, "cut", 2, killed)
    killed.send_signal(signal.SIGSTOP)  # it holds the folder while the other begins
    other = command_in(tmp_path, "cut")
    assert "another search goes on in this folder" in other.communicate(timeout=300)[1]
    assert other.returncode == 2
    killed.kill()
    killed.communicate()
    stopped = command_in(tmp_path, "cut")
    wait_for_trials(tmp_path, "cut", 6, stopped)
    began = time.monotonic()
    stopped.send_signal(signal.SIGINT)
    said = stopped.communicate(timeout=60)[1]
    assert time.monotonic() - began < 5
    assert stopped.returncode == 130
    assert "run the same command again to go on" in said
    again = command_in(tmp_path, "cut")
    assert again.wait(300) == 0, again.communicate()[1]
    again.communicate()
    assert real_trials(tmp_path, "cut") == real_trials(tmp_path, "whole")
    assert not (tmp_path / "cut.search" / "scratch").exists()
