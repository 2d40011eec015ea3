"""Runs that are cut off, anywhere: the output is never half there, and a rerun goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from itertools import count
from pathlib import Path

import pytest
from attempts import Attempt, Running, attempt, start, wait_for
from command_line import HEALTHY, listing, replaced, write_models

from mergepipe.cli.signals import stoppable
from mergepipe.manifest import RUN_FILE
from mergepipe.write import Journal, Record, read_journal

STAGED = """\
mergepipe: 1
models: {base: ./base, expert_a: ./expert_a, expert_b: ./expert_b}
stages:
  first: {merge: {method: ties, base: base, models: [expert_a, expert_b]}}
  second: {merge: {method: dare_linear, base: base, models: [first, expert_a]}}
output: {path: ./merged, max_shard_size: 100KB}
"""
SHARD = "model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A recipe beside copies of its models."""
    for model in models.iterdir():
        shutil.copytree(model, tmp_path / model.name)
    (tmp_path / "recipe.yaml").write_text(HEALTHY)
    return tmp_path


def content(folder: Path, name: str = "merged") -> dict[str, bytes]:
    paths = (path for path in listing(folder / name) if path != RUN_FILE)
    return {path: (folder / name / path).read_bytes() for path in paths}


def whole(folder: Path) -> tuple[dict[str, bytes], int]:
    """What an unbroken run gives, and how many calls to the disk it takes; nothing stays."""
    done = attempt(folder)
    assert done.status == 0, done.err
    found = content(folder)
    shutil.rmtree(folder / "merged")
    return found, done.calls


def journaled(folder: Path) -> int:
    aside = folder / ".merged.journal"  # where it is while names change
    if aside.exists():
        return aside.read_bytes().count(b"\n") - 1
    return len(read_journal(folder / ".merged.partial")[1])


def killed(folder: Path, *options: str, die_at: int) -> Attempt:
    done = attempt(folder, *options, die_at=die_at)
    assert done.status == -signal.SIGKILL, done
    return done


def assert_goes_on(folder: Path, expected: dict[str, bytes], *options: str) -> Attempt:
    """A rerun repeats no tensor that was recorded, and gives the same bytes."""
    made = journaled(folder)
    done = attempt(folder, *options)
    assert done.status == 0, done.err
    assert (f"going on: {made} of " in done.err) == (made > 0), done.err
    assert content(folder) == expected
    assert not [name for name in listing(folder) if name.startswith(".merged")]
    return done


def assert_a_kill_anywhere_does_no_harm(folder: Path, points: range, *options: str) -> None:
    expected, calls = whole(folder)
    tried = [point for point in points if point <= calls]
    assert len(tried) >= 10
    for point in tried:
        killed(folder, *options, die_at=point)
        assert not (folder / "merged").exists() or content(folder) == expected
        if not (folder / "merged").exists():
            assert_goes_on(folder, expected, *options)
        shutil.rmtree(folder / "merged")


# Kills


def test_a_kill_at_any_call_does_no_harm(folder):
    assert_a_kill_anywhere_does_no_harm(folder, range(2, 1000, 9))


@pytest.mark.slow
def test_a_kill_at_every_single_call_does_no_harm(folder):
    assert_a_kill_anywhere_does_no_harm(folder, range(1, 1000))


@pytest.mark.slow
def test_a_kill_at_every_single_call_of_a_recipe_in_stages_does_no_harm(folder):
    (folder / "recipe.yaml").write_text(STAGED)
    assert_a_kill_anywhere_does_no_harm(folder, range(1, 1000))


def kill_over_an_older_result(folder: Path, points: range) -> int:
    (folder / "recipe.yaml").write_text(replaced("0.5", "0.75"))
    older, _ = whole(folder)
    (folder / "recipe.yaml").write_text(HEALTHY)
    newer, calls = whole(folder)
    tried = [point for point in points if calls - 20 < point]
    for point in tried:
        shutil.rmtree(folder / "merged", ignore_errors=True)
        for name, data in older.items():
            (folder / "merged").mkdir(exist_ok=True)
            (folder / "merged" / name).write_bytes(data)
        done = attempt(folder, "--overwrite", die_at=point)
        assert content(folder) in ((older, newer) if done.status else (newer,))
        if done.status:
            assert attempt(folder, "--overwrite").status == 0
        assert content(folder) == newer
        assert not [name for name in listing(folder) if name.startswith(".merged")]
    return len(tried)


def test_a_kill_while_an_older_result_is_replaced_leaves_the_old_or_the_new_one(folder):
    assert kill_over_an_older_result(folder, range(1, 100, 4)) > 3


@pytest.mark.slow
def test_a_kill_at_any_call_that_replaces_an_older_result_leaves_the_old_or_the_new_one(folder):
    assert kill_over_an_older_result(folder, range(1, 120)) > 20


@pytest.mark.parametrize("calls", [57, 64, 71])
def test_a_run_that_is_killed_again_and_again_gets_there(folder, calls):
    expected, _ = whole(folder)
    made = 0
    for tries in count(1):
        if attempt(folder, die_at=calls).status == 0 or (folder / "merged").exists():
            break
        assert journaled(folder) >= made
        made = journaled(folder)
        assert tries < 30
    assert tries > 1
    assert content(folder) == expected


def test_a_stage_that_is_finished_is_not_made_again(folder):
    (folder / "recipe.yaml").write_text(STAGED)
    expected, calls = whole(folder)
    killed(folder, die_at=calls * 2 // 3)
    assert journaled(folder) > 21
    done = assert_goes_on(folder, expected)
    assert done.calls < calls * 2 // 3


def test_result_and_manifest_do_not_depend_on_the_number_of_threads(folder):
    expected, _ = whole(folder)
    assert attempt(folder, "--threads", "1").status == 0
    assert content(folder) == expected


# Signals


def going(folder: Path, pause: float = 0.05) -> Running:
    """A run that has made some of its tensors."""
    running = start(folder, pause=pause)
    wait_for(lambda: journaled(folder) > 2)
    return running


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_a_run_soon_and_says_how_to_go_on(folder, number, status):
    expected, _ = whole(folder)
    running = going(folder)
    began = time.monotonic()
    os.kill(running.pid, number)
    done = running.end()
    assert done.status == status
    assert time.monotonic() - began < 5
    assert f"interrupted: {journaled(folder)} of 21 tensors are made; run the same" in done.err
    assert "Traceback" not in done.err
    assert_goes_on(folder, expected)


def test_a_second_signal_stops_a_run_at_once(folder):
    expected, _ = whole(folder)
    running = going(folder, pause=1.5)
    os.kill(running.pid, signal.SIGINT)
    time.sleep(0.02)
    began = time.monotonic()
    os.kill(running.pid, signal.SIGTERM)
    assert running.end().status == 143
    assert time.monotonic() - began < 1.2
    assert_goes_on(folder, expected)


@pytest.mark.parametrize("call", [2, 4, 6, 8])
def test_a_run_that_is_stopped_before_it_made_a_tensor_leaves_nothing(folder, call):
    before = listing(folder)
    done = attempt(folder, die_at=call, by=signal.SIGINT)
    assert done.status == 130
    assert "interrupted" in done.err
    assert set(listing(folder)) - set(before) == {".said", ".calls"}


@pytest.mark.slow
def test_a_signal_at_any_call_does_no_harm(folder):
    expected, calls = whole(folder)
    for point in range(1, calls + 1):
        done = attempt(folder, die_at=point, by=signal.SIGTERM)
        assert done.status in {0, 143}, done
        assert "Traceback" not in done.err
        if (folder / "merged").exists():
            assert content(folder) == expected
        else:
            assert_goes_on(folder, expected)
        shutil.rmtree(folder / "merged")
        left = {name for name in listing(folder) if name.startswith(".merged")}
        assert left <= {".merged.lock"}  # of nobody: the next run takes it over


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


# What changed in between


def test_a_changed_recipe_starts_over_and_says_what_changed(folder):
    killed(folder, die_at=50)
    (folder / "recipe.yaml").write_text(replaced("0.5", "0.75"))
    done = attempt(folder)
    changed = "the recipe changed: merge.models.expert_a.weight was 0.5, is 0.75"
    assert f"starting over: {changed}\n" in done.err
    after_a_kill = content(folder)
    shutil.rmtree(folder / "merged")
    assert after_a_kill == whole(folder)[0]


def test_a_changed_input_starts_over_and_is_named(folder):
    killed(folder, die_at=50)
    file = folder / "expert_a" / SHARD
    file.write_bytes(file.read_bytes()[:-2] + b"\0\0")
    done = attempt(folder)
    assert "starting over: expert_a/model.safetensors changed\n" in done.err
    after_a_kill = content(folder)
    shutil.rmtree(folder / "merged")
    assert after_a_kill == whole(folder)[0]


def test_another_version_starts_over_and_says_so(folder):
    killed(folder, die_at=50)
    partial = folder / ".merged.partial"
    head, records = read_journal(partial)
    Journal(partial, {**head, "mergepipe": "0.0.9"}).start(records)
    done = attempt(folder)
    assert done.status == 0
    assert f"mergepipe is another version ({head['mergepipe']}, was 0.0.9)" in done.err


def test_a_comment_or_another_evaluation_does_not_start_over(folder):
    expected, _ = whole(folder)
    killed(folder, die_at=50)
    (folder / "recipe.yaml").write_text(f"# mine\n{HEALTHY}")
    assert_goes_on(folder, expected)


def test_an_input_that_changes_while_it_is_read_is_refused_and_nothing_is_left(folder):
    before = listing(folder)
    running = going(folder)
    os.utime(folder / "expert_b" / SHARD)
    done = running.end()
    assert done.status == 2
    assert "expert_b/model.safetensors: changed while it was being read (run again)" in done.err
    assert set(listing(folder)) - set(before) == {".said", ".calls"}


# What was damaged in between


def test_a_journal_torn_at_any_byte_loses_only_its_last_line(tmp_path):
    journal = Journal(tmp_path, {"a": 1})
    records = [Record("merge", f"tensor {i}", "0" * 64, ("1" * 64,), "") for i in range(3)]
    for record in records:
        journal.add(record)
    raw = journal.file.read_bytes()
    for size in range(len(raw)):
        journal.file.write_bytes(raw[:size])
        lines = raw[:size].count(b"\n") + (raw[size : size + 1] == b"\n")
        assert read_journal(tmp_path)[1] == records[: max(0, lines - 1)]


@pytest.mark.parametrize("bit", [0, 1, 5])
def test_a_damaged_line_of_a_journal_is_not_believed(tmp_path, bit):
    journal = Journal(tmp_path, {"a": 1})
    records = [Record("merge", f"tensor {i}", "0" * 64, (), "") for i in range(2)]
    for record in records:
        journal.add(record)
    raw = journal.file.read_bytes()
    for at in range(raw.index(b"\n") + 1, len(raw)):
        journal.file.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
        assert set(map(str, read_journal(tmp_path)[1])) <= set(map(str, records))


@pytest.mark.parametrize("cut", [1, 5, 100, 300])
def test_a_run_goes_on_after_a_torn_journal(folder, cut):
    expected, _ = whole(folder)
    killed(folder, die_at=60)
    journal = folder / ".merged.partial" / "journal.jsonl"
    os.truncate(journal, journal.stat().st_size - cut)
    assert_goes_on(folder, expected)


def test_tensors_that_were_damaged_in_between_are_made_again(folder):
    expected, _ = whole(folder)
    killed(folder, die_at=80)
    made = journaled(folder)
    shard = folder / ".merged.partial" / SHARD
    raw = bytearray(shard.read_bytes())
    raw[-3] ^= 1
    raw[5] ^= 1  # of the header, which is written again in any case
    shard.write_bytes(raw)
    done = attempt(folder)
    assert f"going on: {made - 1} of 21" in done.err
    assert content(folder) == expected


def test_a_partial_folder_whose_shard_is_gone_or_cut_starts_over(folder):
    expected, _ = whole(folder)
    for harm in (Path.unlink, lambda path: os.truncate(path, 8)):
        killed(folder, die_at=60)
        harm(folder / ".merged.partial" / SHARD)
        assert attempt(folder).status == 0
        assert content(folder) == expected
        shutil.rmtree(folder / "merged")


def test_a_manifest_tells_neither_when_nor_where_it_was_made(folder):
    expected, _ = whole(folder)
    text = expected["mergepipe.json"].decode()
    assert str(folder) not in text
    assert os.uname().nodename not in json.dumps(json.loads(text)["inputs"])
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("base", "expert_a", "expert_b", "recipe.yaml"):
        (folder / name).rename(elsewhere / name)
    assert whole(elsewhere)[0] == expected


def test_a_manifest_has_the_digests_of_everything_read_and_written(folder):
    assert attempt(folder).status == 0
    manifest = json.loads((folder / "merged" / "mergepipe.json").read_bytes())
    assert list(manifest["output"]["tensors"]) == list(manifest["inputs"]["expert_a"]["tensors"])
    assert manifest["inputs"]["expert_a"]["source"] == {"folder": "expert_a"}
    assert set(manifest["inputs"]["base"]["files"]) == {"config.json", SHARD}
    assert set(manifest["output"]["files"]) == {"config.json"}
    assert manifest["recipe"]["merge"]["method"] == "linear"
