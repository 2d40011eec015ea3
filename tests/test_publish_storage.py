"""Publishing to buckets and folders: a real S3 server, memory, and this machine's disk."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from publishing import (
    ODD,
    Said,
    contents,
    folder,
    made,
    publish,
    published_files,
    rename_shard,
    reseal,
    shards,
)

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.publish.item import item_of
from mergepipe.publish.targets import storage as storage_target
from mergepipe.verify import verify
from mergepipe.write import partial_folder

__all__ = ["folder", "made"]  # fixtures


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server of its own process; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
        process.terminate()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket, empty; clients are made anew."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "somethingsecret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    if not system.exists("models"):
        system.mkdir("models")
    for path in system.find("models"):
        system.rm_file(path)
    fsspec.filesystem("s3").invalidate_cache()
    yield "s3://models"
    type(system).clear_instance_cache()


def stored(url: str) -> dict[str, bytes]:
    system, root = fsspec.url_to_fs(url)
    system.invalidate_cache()
    return {path[len(root) + 1 :]: system.cat_file(path) for path in system.find(root)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was uploaded, in order."""
    found: list[str] = []
    put = storage_target.Storage._put

    def noted(self, item, tell):
        found.append(item.name)
        put(self, item, tell)

    monkeypatch.setattr(storage_target.Storage, "_put", noted)
    return found


@pytest.fixture
def memory() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield "memory://models/merged"
    system.store.clear()


@pytest.mark.slow
def test_a_bucket_gets_every_file_byte_for_byte(bucket, folder):
    rename_shard(folder, shards(folder)[0], ODD)
    done = publish(folder, f"{bucket}/a b/größe")
    assert stored(f"{bucket}/a b/größe") == published_files(folder)
    assert set(done[0].sent) == set(published_files(folder))


@pytest.mark.slow
def test_what_is_in_a_bucket_is_not_sent_again(bucket, folder, calls):
    publish(folder, f"{bucket}/x")
    calls.clear()
    assert publish(folder, f"{bucket}/x")[0].sent == ()
    assert calls == []


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_files_sent_in_parts_are_known_again_by_their_etag(tmp_path):
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * 11)
    system = fsspec.filesystem("s3")
    system.put_file(str(large), "models/large", chunksize=5 << 20)
    about = system.info("models/large")
    assert about["ETag"].strip('"').endswith("-3")
    item = storage_target.Item("large", large, large.stat().st_size, ())
    assert storage_target._has_stated_digest(item, about)
    large.write_bytes(large.read_bytes()[::-1])
    other = storage_target.Item("large", large, large.stat().st_size, (1,))
    assert not storage_target._has_stated_digest(other, about)


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_is_named(folder):
    with pytest.raises(EnvironmentFault, match="bucket"):
        publish(folder, "s3://absent/x")


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_an_address_that_nobody_answers_is_a_fault_of_the_environment(folder, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(EnvironmentFault, match="cannot be reached"):
        publish(folder, "s3://nowhere/x")


def md5(data: bytes) -> bytes:
    return hashlib.md5(data).digest()


def test_digests_that_servers_state_are_compared_with_ours(tmp_path):
    data = bytes(range(256)) * (6 << 12)  # 6 MiB: parts of 5 MiB and the rest
    (tmp_path / "x").write_bytes(data)
    item = item_of(tmp_path, "x")
    cut = 5 << 20
    parts = md5(md5(data[:cut]) + md5(data[cut:])).hex() + "-2"
    same = {"ETag": f'"{parts}"'}, {"etag": md5(data).hex()}, {"md5Hash": b64encode(md5(data))}
    other = {"ETag": f'"{parts[:-1]}3"'}, {"etag": md5(b"").hex()}, {"md5Hash": "x"}, {}
    assert all(storage_target._has_stated_digest(item, decoded(one)) for one in same)
    assert not any(storage_target._has_stated_digest(item, one) for one in other)


def decoded(about: dict) -> dict:
    return {name: one.decode() if isinstance(one, bytes) else one for name, one in about.items()}


def test_config_and_manifest_are_sent_last(memory, folder, calls):
    publish(folder, memory)
    assert calls[: len(shards(folder))] == shards(folder)
    assert calls[-3:] == ["model.safetensors.index.json", "config.json", "mergepipe.json"]


def test_what_was_cut_off_goes_on(memory, folder, calls, monkeypatch):
    system = fsspec.filesystem("memory")
    put = type(system).put_file

    def fails(self, local, remote, **more):
        if remote.endswith(shards(folder)[2]):
            put(self, local, remote, **more)
            system.pipe_file(remote, b"torn")
            raise OSError("connection lost")
        put(self, local, remote, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(system), "put_file", fails)
        with pytest.raises(EnvironmentFault, match="publish again to go on"):
            publish(folder, memory)
    assert "config.json" not in stored(memory)
    calls.clear()
    publish(folder, memory, overwrite=True)
    assert stored(memory) == published_files(folder)
    assert not set(calls) & set(shards(folder)[:2])


def test_another_model_in_storage_is_replaced_only_when_asked(memory, folder):
    system = fsspec.filesystem("memory")
    other = {"config.json": b"{}", "old.safetensors": b"old", "logo.png": b"png"}
    for name, data in other.items():
        system.pipe_file(f"models/merged/{name}", data)
    with pytest.raises(InputError, match=r"replaced: config\.json; removed: old\.safetensors"):
        publish(folder, memory)
    assert stored(memory) == other
    publish(folder, memory, overwrite=True)
    assert stored(memory) == {**published_files(folder), "logo.png": b"png"}


def test_while_storage_is_mixed_it_has_no_configuration(memory, folder, monkeypatch):
    publish(folder, memory)
    rename_shard(folder, shards(folder)[0], "other.safetensors")
    seen: list[bool] = []
    put = storage_target.Storage._put
    monkeypatch.setattr(
        storage_target.Storage,
        "_put",
        lambda self, item, tell: (
            seen.append("config.json" in stored(memory)),
            put(self, item, tell),
        ),
    )
    publish(folder, memory, overwrite=True)
    assert seen == [False] * (len(seen) - 1) + [True]  # the manifest comes after it
    assert len(seen) == 4
    assert stored(memory) == published_files(folder)


def test_a_file_that_changes_on_the_way_is_refused(memory, folder, monkeypatch):
    victim = folder / shards(folder)[-1]
    put = storage_target.Storage._put

    def harm(self, item, tell):
        if item.name == "tokenizer.json":
            victim.write_bytes(victim.read_bytes()[::-1])
        put(self, item, tell)

    monkeypatch.setattr(storage_target.Storage, "_put", harm)
    with pytest.raises(InputError, match="changed while"):
        publish(folder, memory)
    assert not {"config.json", "mergepipe.json"} & stored(memory).keys()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("s3://", "names no bucket"),
        ("file:///tmp/x", "the folder itself"),
        ("hf://me/x", "hf:org/name"),
        ("nosuch://x/y", "cannot be a target"),
        ("sftp://me:hunter22@host/x", "holds a password"),
    ],
)
def test_urls_that_are_no_targets_are_refused(folder, target, words):
    with pytest.raises(InputError, match=words) as caught:
        publish(folder, target)
    assert "hunter22" not in str(caught.value)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(EnvironmentFault, match=r"mergepipe\[s3\]"):
        publish(folder, "s3://models/x")


def test_a_folder_gets_every_file_and_passes_verify(folder, tmp_path):
    out = tmp_path / "made on the way" / "größe #1?%"
    done = publish(folder, str(out))
    assert contents(out) == published_files(folder)
    assert not verify(out).differences
    assert done[0].url == str(out)
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]


def test_a_folder_that_has_it_all_is_left_alone(folder, tmp_path):
    publish(folder, str(tmp_path / "out"))
    before = (tmp_path / "out").stat()
    assert publish(folder, str(tmp_path / "out"))[0].sent == ()
    after = (tmp_path / "out").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_folder_is_never_half_and_a_copy_that_was_cut_off_goes_on(folder, tmp_path, monkeypatch):
    import shutil

    copied: list[str] = []
    copy = shutil.copyfile

    def counted(source, target):
        copied.append(Path(source).name)
        if len(copied) == 3:
            raise KeyboardInterrupt
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match="the same command sends what is missing"):
        publish(folder, str(out))
    assert not out.exists()
    first = copied[:2]
    copied.clear()
    copied += ["", "", ""]
    publish(folder, str(out))
    assert not set(first) & set(copied)
    assert contents(out) == published_files(folder)


def test_another_model_in_a_folder_is_replaced_only_when_asked(folder, tmp_path):
    out = tmp_path / "out"
    publish(folder, str(out))
    (out / "extra.safetensors").write_bytes(b"x")
    (out / "config.json").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"replaced: config\.json; removed: extra\.safet"):
        publish(folder, str(out))
    said = Said()
    publish(folder, str(out), overwrite=True, said=said)
    assert contents(out) == published_files(folder)
    assert next(line for line in said if "copied" in line).startswith("config.json")


def test_a_folder_of_other_things_is_never_replaced(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        publish(folder, str(out), overwrite=True)
    assert contents(out) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("inside", ["", "inner", ".."])
def test_the_checkpoint_itself_is_no_target(folder, inside):
    with pytest.raises(InputError, match="own folder"):
        publish(folder, str(folder / inside), overwrite=True)


def test_a_merge_that_was_cut_off_is_not_lost(folder, tmp_path):
    partial = partial_folder(tmp_path / "out")
    partial.mkdir()
    (partial / "journal.jsonl").write_text("{}\n")
    from mergepipe.write import JOURNAL_FILE

    (partial / JOURNAL_FILE).write_text("{}\n")
    with pytest.raises(InputError, match="mergepipe run"):
        publish(folder, str(tmp_path / "out"), overwrite=True)
    assert (partial / JOURNAL_FILE).read_text() == "{}\n"


def test_several_targets_are_all_looked_at_before_one_is_written(folder, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "config.json").write_text("{}")
    with pytest.raises(InputError):
        publish(folder, str(tmp_path / "free"), str(taken))
    assert not (tmp_path / "free").exists()
    done = publish(folder, str(tmp_path / "free"), str(taken), overwrite=True)
    assert [one.target for one in done] == [str(tmp_path / "free"), str(taken)]


def test_a_published_copy_can_be_published(folder, tmp_path):
    publish(folder, str(tmp_path / "one"))
    publish(tmp_path / "one", str(tmp_path / "two"))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_json_numbers_are_whole(folder, tmp_path):
    (one,) = publish(folder, str(tmp_path / "out"))
    assert json.loads(json.dumps(one.size)) == sum(map(len, published_files(folder).values()))
    reseal(folder, lambda _content: None)  # the same text again
    assert publish(folder, str(tmp_path / "out"))[0].sent == ()
