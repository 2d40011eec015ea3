"""Disks that are full, broken or not ours to write: said in one line, and nothing is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attempts import attempt, start, wait_for
from command_line import HEALTHY, command, listing, write_models
from test_resume import assert_goes_on, content, journaled, whole

from mergepipe.errors import EnvironmentFault
from mergepipe.write import disk_faults

SHARD = "model.safetensors"
NEEDED = 232_176  # bytes of the shard


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A recipe beside links to its models."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    (tmp_path / "recipe.yaml").write_text(HEALTHY)
    return tmp_path


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """A small file system of its own at `folder/disk`."""
    place = folder / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False
    ).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def resize(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


OUT = ("--out", "disk/merged")


def assert_only_models(folder: Path) -> None:
    assert not [name for name in listing(folder) if name.startswith(".merged")]


# Before anything is written


def test_a_disk_without_room_is_found_before_the_start(folder, disk):
    resize(disk, "size=100k")
    done = attempt(folder, *OUT)
    assert done.status == 3
    assert "disk/merged: not enough disk: 0.0 GB needed" in done.err
    assert listing(disk) == []


def test_room_that_the_partial_folder_takes_counts_as_free(folder, disk):
    expected, _ = whole(folder)
    resize(disk, "size=280k")
    assert attempt(folder, *OUT, die_at=75).status == -signal.SIGKILL
    assert attempt(folder, *OUT).status == 0
    assert content(disk) == expected


def test_a_file_system_that_may_not_be_written_is_named(folder, disk):
    resize(disk, "ro")
    done = attempt(folder, *OUT)
    assert done.status == 3
    assert done.err.count("error: ") == 1
    assert "error: disk: no permission to write here" in done.err or "read-only" in done.err


def test_a_file_system_without_inodes_is_named(folder, disk):
    resize(disk, "nr_inodes=2")
    (disk / "a").touch()
    done = attempt(folder, *OUT)
    assert done.status == 3
    assert "disk/.merged.lock: the disk is full (free some space (or inodes)" in done.err


# While it is written


def test_a_disk_that_fills_up_in_a_shard_is_named_and_the_run_goes_on_later(folder, disk):
    expected, _ = whole(folder)
    resize(disk, "size=400k")
    running = start(folder, *OUT, pause=0.05)
    wait_for(lambda: journaled(disk) > 2)
    ballast = disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(bytes(1_000_000))
    done = running.end()
    assert done.status == 3
    assert "disk/.merged.partial/" in done.err
    assert "the disk is full" in done.err
    assert f"stopped: {journaled(disk)} of 21 tensors are made; run the same" in done.err
    assert not (disk / "merged").exists()
    ballast.unlink()
    assert_goes_on_there(folder, disk, expected)


def assert_goes_on_there(folder: Path, disk: Path, expected: dict[str, bytes]) -> None:
    made = journaled(disk)
    done = attempt(folder, *OUT)
    assert done.status == 0, done.err
    assert f"going on: {made} of 21" in done.err
    assert content(disk) == expected


def test_a_disk_that_fills_up_after_the_shard_is_never_a_success(folder, disk):
    expected, _ = whole(folder)
    named = set()
    for room in range(NEEDED // 4096 + 1, NEEDED // 4096 + 16):
        resize(disk, f"size={room * 4}k")
        done = attempt(folder, *OUT)
        if done.status == 0:
            break
        assert done.status == 3
        assert not (disk / "merged").exists()
        line = next(line for line in done.err.splitlines() if line.startswith("error: "))
        named.add(line.split(":")[1].strip().removeprefix("disk/.merged.partial/"))
    assert done.status == 0
    assert {"journal.jsonl", "mergepipe.json"} & named
    assert content(disk) == expected


def test_an_older_result_survives_a_full_disk(folder, disk):
    assert attempt(folder, *OUT, "--set", "merge.models.expert_a.weight=1.0").status == 0
    before = content(disk)
    resize(disk, f"size={(NEEDED * 2 + 20_000) // 1024}k")
    done = attempt(folder, *OUT, "--overwrite")
    assert done.status == 3
    assert content(disk) == before


def test_a_file_larger_than_is_allowed_is_named_with_a_hint(folder):
    expected, _ = whole(folder)
    done = attempt(folder, RLIMIT_FSIZE=100_000)
    assert done.status == 3
    assert ".merged.partial/model.safetensors: the file is larger than" in done.err
    assert "max_shard_size" in done.err
    assert_only_models(folder)
    assert_goes_on(folder, expected)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_what_the_system_refuses_is_said_with_the_file(tmp_path, code):
    with (
        pytest.raises(EnvironmentFault, match=r"^/x/shard: .*\(.*\)$"),
        disk_faults(tmp_path),
    ):
        raise OSError(code, os.strerror(code), "/x/shard")


def test_two_runs_to_one_output_tell_who_is_first(folder):
    running = start(folder, pause=0.1)
    wait_for((folder / ".merged.partial" / SHARD).exists)
    os.kill(running.pid, signal.SIGSTOP)  # however long the second takes to start
    second = subprocess.run(
        [sys.executable, "-m", "mergepipe", "run", "recipe.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    os.kill(running.pid, signal.SIGCONT)
    assert second.returncode == 3
    assert f"another run is writing here: process {running.pid} on " in second.stderr
    assert running.end().status == 0


# Streams


def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    run = f"{sys.executable} -m mergepipe run recipe.yaml"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.format(run=run)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("line", ["{run} <&- >&- 2>&-", "{run} --json 2>&1 | true"])
def test_streams_that_are_closed_do_not_harm_a_merge(folder, line):
    expected, _ = whole(folder)
    done = shell(folder, line)
    assert done.returncode == 0
    assert content(folder) == expected
    assert "Exception" not in done.stderr


# What only strace can do


def traced(folder: Path, *inject: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    asked = [word for one in inject for word in ("-e", one)]
    run = [sys.executable, "-m", "mergepipe", "run", "recipe.yaml", "--threads", "2"]
    return subprocess.run(
        ["strace", "-f", "-qq", "-o", folder / "log", *asked, *run],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("when", range(1, 7))
def test_a_failed_fsync_is_no_success_and_what_it_lost_is_made_again(folder, when):
    expected, _ = whole(folder)
    done = traced(folder, f"inject=fsync:error=EIO:when={when}")
    if done.returncode == 0:
        pytest.skip("fewer fsyncs than that")
    assert done.returncode == 3
    assert "the disk reports an error (EIO)" in done.stderr
    if when == 1:
        assert not (folder / ".merged.partial" / SHARD).exists()
    if not (folder / "merged").exists():
        assert attempt(folder).status == 0
    assert content(folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EIO"])
@pytest.mark.parametrize("when", [1, 4, 8])  # strace counts by thread
def test_a_failed_write_is_no_success_and_the_run_goes_on_later(folder, error, when):
    expected, _ = whole(folder)
    done = traced(folder, f"inject=pwrite64:error={error}:when={when}+")
    assert done.returncode == 3, done.stderr
    assert ".merged.partial" in done.stderr or ".merged.lock" in done.stderr
    assert_goes_on(folder, expected)


@pytest.mark.slow
def test_everything_is_on_the_disk_before_the_name_changes(folder):
    done = traced(folder, "trace=fsync,rename,renameat2,openat")
    assert done.returncode == 0
    lines = (folder / "log").read_text().splitlines()
    renamed = next(i for i, line in enumerate(lines) if "rename" in line and '"merged"' in line)
    synced = [i for i, line in enumerate(lines) if "fsync(" in line]
    assert len([i for i in synced if i < renamed]) >= 4  # shard, config, manifest, folder
    assert len([i for i in synced if i > renamed]) == 1  # its parent


@pytest.mark.slow
def test_without_sync_nothing_is_waited_for(folder):
    done = traced(folder, "trace=fsync")
    assert done.returncode == 0
    assert "fsync(" in (folder / "log").read_text()
    shutil.rmtree(folder / "merged")
    (folder / "log").unlink()
    file = folder / "recipe.yaml"
    log = folder / "log"
    arguments = [sys.executable, "-m", "mergepipe", "run", str(file), "--no-sync"]
    subprocess.run(["strace", "-f", "-qq", "-o", log, "-e", "trace=fsync", *arguments], check=True)
    assert "fsync(" not in log.read_text()


def test_the_lock_names_its_holder(folder, capsys):
    with (folder / ".merged.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on another")
        lock.flush()
        said = command(capsys, "run", folder / "recipe.yaml")
    assert (said.status, "process 7 on another" in said.err) == (3, True)
