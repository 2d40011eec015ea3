"""Publishing to the hub: nothing half, nothing twice, nothing unasked, whatever goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import TOKEN, cut, hub_running, mute, refuse_after, status
from hub_state import Hub
from publishing import (
    ODD,
    Said,
    contents,
    folder,
    hub,
    made,
    publish,
    published_files,
    rename_shard,
    shards,
)

from mergepipe.errors import EnvironmentFault, InputError

__all__ = ["folder", "hub", "made"]  # fixtures

LARGE_PUT = r"PUT /storage/"


def commits(hub: Hub, branch: str = "main") -> list[list[str]]:
    """The names of the files after each commit, the first left out."""
    return [sorted(one.files) for one in hub.repos["me/x"].branches[branch][1:]]


def put_objects(hub: Hub) -> set[str]:
    """The objects whose bytes were sent."""
    return {
        line.split("/")[2].partition("?")[0]
        for line in hub.requests
        if line.startswith("PUT /storage/")
    }


def downloaded(hub: Hub, folder: Path) -> dict[str, bytes]:
    """What the hub's own client fetches in a process of its own."""
    code = f"import huggingface_hub as h; h.snapshot_download('me/x', local_dir={str(folder)!r})"
    there = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / ".cache")
    return contents(folder)


def test_what_is_published_downloads_again_byte_for_byte(hub, folder, tmp_path):
    rename_shard(folder, shards(folder)[0], ODD)
    done = publish(folder, "hf:me/x")
    got = downloaded(hub, tmp_path / "copy")
    del got[".gitattributes"]
    assert got == published_files(folder)
    assert {ODD, "additional_chat_templates/tool use #1?% é.jinja"} < got.keys()
    assert set(done[0].sent) == got.keys()
    assert done[0].visibility == "private"
    assert hub.repos["me/x"].private


def test_config_and_manifest_come_with_the_last_commit_after_all_weights(hub, folder):
    publish(folder, "hf:me/x")
    weights, everything = commits(hub)
    assert weights == [".gitattributes", *shards(folder)]
    assert {"config.json", "mergepipe.json", "model.safetensors.index.json"} <= set(everything)


def test_a_second_time_nothing_is_sent_or_committed(hub, folder):
    publish(folder, "hf:me/x")
    hub.requests.clear()
    done = publish(folder, "hf:me/x")
    assert done[0].sent == ()
    assert set(done[0].there) == set(published_files(folder))
    assert hub.count(r"^(POST|PUT)") == 0


def test_a_connection_cut_in_the_third_shard_goes_on_there(hub, folder):
    third = shards(folder)[2]
    hub.fail(LARGE_PUT, lambda one: hub.count("/batch") >= 3 and cut(one), times=10_000)
    with pytest.raises(EnvironmentFault) as caught:
        publish(folder, "hf:me/x")
    assert third in str(caught.value)
    assert "the same command sends what is missing" in str(caught.value)
    assert commits(hub) == []
    before = {oid for oid in hub.objects if "/" not in oid}
    assert len(before) == 2
    hub.faults.clear()
    hub.requests.clear()
    publish(folder, "hf:me/x")
    assert not put_objects(hub) & before
    assert hub.files("me/x").keys() - {".gitattributes"} == published_files(folder).keys()


def test_one_that_is_cut_once_is_tried_again(hub, folder):
    hub.fail(LARGE_PUT, cut, skip=1)
    said = Said()
    publish(folder, "hf:me/x", said=said)
    assert "Retrying" in said.text
    assert "secretsignature" not in said.text
    assert len(commits(hub)) == 2


def test_killed_between_commits_it_is_no_model_yet_and_goes_on(hub, folder):
    hub.fail(r"POST /api/models/me/x/commit", status(403), skip=1)
    with pytest.raises(EnvironmentFault):
        publish(folder, "hf:me/x")
    assert "config.json" not in hub.files("me/x")
    hub.requests.clear()
    publish(folder, "hf:me/x")
    assert hub.count(LARGE_PUT) == 0
    assert len(commits(hub)) == 2


@pytest.mark.parametrize("how", [mute, refuse_after])
@pytest.mark.parametrize("skip", [0, 1])
def test_a_commit_that_was_done_though_no_answer_came_is_not_done_twice(hub, folder, how, skip):
    hub.fail(r"POST /api/models/me/x/commit", how, skip=skip)
    publish(folder, "hf:me/x")
    assert len(commits(hub)) == 2
    assert hub.count(r"POST .*/commit/") == 2
    assert hub.files("me/x").keys() - {".gitattributes"} == published_files(folder).keys()


@pytest.mark.parametrize(
    ("code", "words"), [(401, "does not know the token"), (403, "scope `write`")]
)
@pytest.mark.parametrize("path", ["GET /api/models/me/x", "POST /api/repos/create", "/preupload/"])
def test_a_refused_token_stops_it_at_once_and_the_scope_is_named(hub, folder, code, words, path):
    hub.fail(path, status(code), times=10_000)
    with pytest.raises(EnvironmentFault) as caught:
        publish(folder, "hf:me/x")
    assert words in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert hub.count(path) == 1


def test_someone_elses_name_is_refused_in_the_hubs_words(hub, folder):
    with pytest.raises(EnvironmentFault, match="rights to create a model under the namespace you"):
        publish(folder, "hf:you/x")
    assert hub.count(LARGE_PUT) == 0


def test_without_a_token_nothing_is_asked(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(EnvironmentFault, match="HF_TOKEN"):
        publish(folder, "hf:me/x")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("GET /api/models/me/x", 500),
        ("/api/repos/create", 503),
        ("/preupload/", 429),
        ("/batch", 502),
        (LARGE_PUT, 429),
        ("/commit/", 500),
        ("/commit/", 429),
    ],
)
def test_what_passes_is_waited_for(hub, folder, path, code):
    hub.fail(path, status(code, Retry_After="2"), times=2)
    publish(folder, "hf:me/x")
    assert len(commits(hub)) == 2
    assert hub.files("me/x").keys() - {".gitattributes"} == published_files(folder).keys()


def test_a_wait_is_as_long_as_the_server_says(hub, folder, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr("mergepipe.publish.hub.time.sleep", waits.append)
    hub.fail("/commit/", status(429, Retry_After="17"))
    said = Said()
    publish(folder, "hf:me/x", said=said)
    assert 17 in waits
    assert "the server answers 429; trying again in 17 s" in said.text


def test_a_file_that_changes_while_it_is_sent_is_not_committed(hub, folder):
    victim = folder / shards(folder)[3]
    times = victim.stat().st_atime_ns, victim.stat().st_mtime_ns

    def harm(line: str) -> None:
        if hub.count("/preupload/") == 4 and "/preupload/" in line:
            victim.write_bytes(victim.read_bytes()[::-1])
            os.utime(victim, ns=times)  # as a copying tool would

    hub.after = harm
    with pytest.raises(InputError, match="changed while it was being published"):
        publish(folder, "hf:me/x")
    assert commits(hub) == []


OTHER = {"config.json": b"{}", "old.safetensors": b"old", "LICENSE": b"mine", "logo.png": b"png"}


def test_another_model_is_not_replaced_unasked(hub, folder):
    hub.add("me/x", dict(OTHER))
    with pytest.raises(InputError) as caught:
        publish(folder, "hf:me/x")
    assert "replaced: config.json; removed: LICENSE, old.safetensors" in str(caught.value)
    assert hub.files("me/x") == OTHER
    assert hub.count(r"^(PUT|POST)") == 0


def test_another_model_is_replaced_in_one_commit(hub, folder):
    hub.add("me/x", dict(OTHER))
    said = Said()
    publish(folder, "hf:me/x", said=said, overwrite=True)
    assert len(commits(hub)) == 1
    assert hub.files("me/x") == {**published_files(folder), "logo.png": b"png"}
    assert "replaced: config.json" in said.text


def test_what_someone_else_commits_meanwhile_is_not_replaced(hub, folder):
    repo = hub.add("me/x", dict(OTHER))

    def meddle(line: str) -> None:
        if hub.count(LARGE_PUT) == 1 and line.startswith("PUT"):
            hub.commit(repo, "main", "theirs", {"config.json": b"[]", "new.bin": b"new"}, ())

    hub.after = meddle
    with pytest.raises(InputError, match="A commit has happened since"):
        publish(folder, "hf:me/x", overwrite=True)
    assert hub.files("me/x") == {"config.json": b"[]", "new.bin": b"new"}


def test_a_data_sets_name_is_refused(hub, folder):
    hub.add("me/x", {}, kind="dataset")
    with pytest.raises(InputError, match="data set"):
        publish(folder, "hf:me/x")


def test_it_is_said_what_goes_where_and_who_sees_it_before_anything_is_sent(hub, folder):
    heard: list[tuple[str, int]] = []
    publish(
        folder,
        "hf:me/x",
        public=True,
        tell=lambda line: heard.append((line, hub.count(r"^(PUT|POST)"))),
    )
    summary = next(one for one in heard if f"{hub.url}/me/x (public, new)" in one[0])
    assert summary[1] == 0
    assert "files to send" in summary[0]
    assert not hub.repos["me/x"].private


def test_a_private_repository_stays_private(hub, folder):
    hub.add("me/x", {})
    said = Said()
    done = publish(folder, "hf:me/x", said=said, public=True)
    assert done[0].visibility == "private"
    assert "stays private" in said.text


def test_a_dry_run_only_looks(hub, folder):
    done = publish(folder, "hf:me/x", dry_run=True)
    assert set(done[0].sent) == set(published_files(folder))
    assert hub.count(r"^(PUT|POST)") == 0
    assert hub.repos == {}


@pytest.mark.parametrize("by_option", [True, False])
def test_a_branch_is_made_and_the_main_one_left_alone(hub, folder, by_option):
    hub.add("me/x", dict(OTHER))
    target, options = ("hf:me/x", {"branch": "v2"}) if by_option else ("hf:me/x@v2", {})
    done = publish(folder, target, **options)
    assert done[0].url == f"{hub.url}/me/x/tree/v2"
    assert hub.files("me/x") == OTHER
    assert hub.files("me/x", "v2") == {**published_files(folder), "logo.png": b"png"}
    hub.requests.clear()
    assert publish(folder, target, **options)[0].sent == ()


@pytest.mark.parametrize("how", [None, mute])
def test_a_pull_request_is_opened_once(hub, folder, how):
    hub.add("me/x", dict(OTHER))
    if how:
        hub.fail("/commit/", how)
    done = publish(folder, "hf:me/x", pr=True)
    assert done[0].url == f"{hub.url}/me/x/discussions/1"
    assert hub.files("me/x") == OTHER
    assert hub.files("me/x", "refs/pr/1") == {**published_files(folder), "logo.png": b"png"}
    said = Said()
    assert publish(folder, "hf:me/x", pr=True, said=said)[0].sent == ()
    assert "all of it is in" in said.text
    assert len(hub.repos["me/x"].pulls) == 1


@pytest.mark.parametrize("said", ["[1", "7", "[a, b]"])
def test_a_card_that_the_hub_does_not_take_is_refused_before_the_upload(hub, folder, said):
    (folder / "README.md").write_text(f"---\nlicense: {said}\n---\n")
    with pytest.raises(InputError, match=r"README\.md"):
        publish(folder, "hf:me/x")
    assert hub.count(LARGE_PUT) == 0


@pytest.mark.parametrize(
    "target", ["hf:x", "hf:a/b/c", "hf:a/b c", "hf:a/b@", "hf:", "hf:me/x@v 2"]
)
def test_what_is_no_repository_is_refused(hub, folder, target):
    with pytest.raises(InputError, match=r"hf:org/name"):
        publish(folder, target)
    assert hub.requests == []


@pytest.mark.usefixtures("hub")
def test_two_branches_are_refused(folder):
    with pytest.raises(InputError, match="keep one"):
        publish(folder, "hf:me/x@a", branch="b")


@pytest.mark.usefixtures("hub")
def test_the_hubs_client_is_as_it_was_afterwards(folder):
    before = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY
    publish(folder, "hf:me/x")
    assert huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY is before


@pytest.mark.usefixtures("hub")
def test_a_copy_that_was_moved_is_the_same_model(folder, tmp_path):
    publish(folder, "hf:me/x")
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert publish(moved, "hf:me/x")[0].sent == ()


def test_the_command_finds_another_server_by_hf_endpoint(folder, monkeypatch, tmp_path):
    """In a process of its own, since the client reads its environment once."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    words = ["publish", str(folder), "--to", "hf:me/x", "--branch", "v2", "--json"]
    with hub_running() as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        code = "from mergepipe.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env={**os.environ, **there},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["url"] == f"{hub.url}/me/x/tree/v2"
        assert hub.files("me/x", "v2").keys() == published_files(folder).keys() | {".gitattributes"}
    assert TOKEN not in done.stdout + done.stderr
