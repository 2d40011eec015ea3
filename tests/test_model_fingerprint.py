"""Fingerprints: of what a model answers by, and of nothing else."""

from __future__ import annotations

import os
import shutil

import pytest
from askable import askable

from mergepipe.errors import EnvironmentFault
from mergepipe.model import fingerprint
from mergepipe.model.fingerprint import file_digest
from mergepipe.model.load import local_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return askable("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def copy(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")


def test_a_copy_elsewhere_under_another_name_has_the_same_fingerprint(original, copy):
    assert local_model(copy, "b").fingerprint == local_model(original, "a").fingerprint


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


CHANGES = {
    "one bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "a field of the config": lambda folder: replace(folder / "config.json", "1e-06", "1e-05"),
    "the tokenizer": lambda folder: replace(folder / "tokenizer.json", '"<pad>"', '"<pax>"'),
    "what ends a text": lambda folder: replace(folder / "tokenizer_config.json", "</s>", "<s>"),
    "a chat template": lambda folder: (folder / "chat_template.jinja").write_text("x"),
}


def replace(file, old, new):
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_answers_changes_the_fingerprint(original, copy, what):
    CHANGES[what](copy)
    assert local_model(copy, "a").fingerprint != local_model(original, "a").fingerprint


def test_the_dtype_changes_the_fingerprint_and_a_readme_does_not(original, copy):
    (copy / "README.md").write_text("words")
    (copy / "optimizer.pt").write_text("leftovers")
    found = {
        dtype: local_model(copy, "a", dtype=dtype).fingerprint for dtype in ("float32", "bfloat16")
    }
    assert found["float32"] == local_model(original, "a").fingerprint != found["bfloat16"]


def aged(file, data, seconds=100):
    file.write_bytes(data)
    now = file.stat().st_mtime
    os.utime(file, (now - seconds, now - seconds))
    return file


def test_a_file_is_read_once(tmp_path, monkeypatch):
    file = aged(tmp_path / "x.safetensors", b"abc")
    first = file_digest(file)
    monkeypatch.setattr(fingerprint, "_digest", lambda _: pytest.fail("read again"))
    assert file_digest(file) == first


def test_a_file_that_changed_is_read_again(tmp_path):
    file = aged(tmp_path / "x.safetensors", b"abc")
    first = file_digest(file)
    assert file_digest(aged(file, b"abd", 50)) != first


def test_a_file_written_just_now_is_not_remembered(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"abc")
    first, status = file_digest(file), file.stat()
    file.write_bytes(b"abd")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # a clock too coarse to tell
    assert file_digest(file) != first


def test_a_cache_that_cannot_be_written_or_is_damaged_only_costs_time(tmp_path, cache):
    file = aged(tmp_path / "x.safetensors", b"abc")
    cache.write_text("a file where the folder should be")
    first = file_digest(file)
    cache.unlink()
    assert file_digest(file) == first
    [entry] = (cache / "mergepipe" / "digests").iterdir()
    entry.write_bytes(b"\xff\xfe")
    assert file_digest(file) == first


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"x\.safetensors: cannot be read"):
        file_digest(tmp_path / "x.safetensors")
