"""Malformed safetensors files: each is refused in words, or survived, within bounded time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from checkpoints import (
    header_of,
    llama,
    llama_shapes,
    random_tensors,
    write_raw,
    write_safetensors,
    write_weights,
)
from faulty import Row, edit_header, local, open_timed, parts, refused, rows, survived

FILE = "model.safetensors"
NORM = "model.norm.weight"
K_PROJ = "model.layers.0.self_attn.k_proj.weight"
TENSORS = random_tensors(llama_shapes())
BAD = ("expert_bad", FILE)


def tensors_with(**extra):
    """Harm: extra tensors beside the healthy ones."""
    named = {name.replace("__", "."): tensor for name, tensor in extra.items()}
    return lambda folder: write_safetensors(folder / FILE, TENSORS | named)


def content(data: bytes):
    return lambda folder: (folder / FILE).write_bytes(data)


def header_bytes(header: bytes, length: int | None = None):
    return lambda folder: write_raw(folder / FILE, header, b"", length)


def entry(name: str, **fields):
    """Harm: other fields in one tensor's header entry."""
    return lambda folder: edit_header(folder / FILE, lambda header: header[name].update(fields))


def keep_bytes(count):
    """Harm: the file cut to `count` bytes, or by -`count`, or to a share of its size."""

    def cut(folder):
        size = (folder / FILE).stat().st_size
        os.truncate(folder / FILE, int(size * count) if 0 < count < 1 else size + count)

    return cut


def cut_last_brace(folder):
    header, data = parts(folder / FILE)
    write_raw(folder / FILE, header, data, len(header) - 1)


def twice(folder, other):
    """The norm's entry again, changed by `other`, under the same name."""
    header, data = parts(folder / FILE)
    again = json.loads(header)[NORM] | other
    text = header[:-1] + f', "{NORM}": {json.dumps(again)}}}'.encode()
    write_raw(folder / FILE, text, data)


def hole(folder):
    def shift(header):
        offsets = header[NORM]["data_offsets"]
        for name, item in header.items():
            if name != "__metadata__" and item["data_offsets"][0] >= offsets[0]:
                item["data_offsets"] = [at + 64 for at in item["data_offsets"]]

    edit_header(folder / FILE, shift)
    with (folder / FILE).open("ab") as file:
        file.write(bytes(64))


def replaced_by(make):
    def harm(folder):
        (folder / FILE).unlink()
        make(folder / FILE)

    return harm


def sparse(path):
    path.write_bytes((120_000_000).to_bytes(8, "little"))
    os.truncate(path, 240_000_000)


def append_zip(folder):
    with zipfile.ZipFile(folder / FILE, "a") as archive:
        archive.writestr("evil.txt", "evil")


def both(folder):
    tensors = random_tensors(llama_shapes(), seed=1)
    write_weights(folder, tensors, shards=2)


def overlap(folder):
    def edit(header):
        header[K_PROJ]["data_offsets"] = header["model.layers.0.self_attn.v_proj.weight"][
            "data_offsets"
        ]

    edit_header(folder / FILE, edit)


def without_layer(folder):
    kept = {name: value for name, value in TENSORS.items() if "layers.1." not in name}
    write_safetensors(folder / FILE, kept)


EMPTY = torch.zeros(0, dtype=torch.bfloat16)
HALF = ("truncated", "incomplete", "not fully covered", "size")
REFUSED = rows(
    Row("same name twice, other dtype", lambda f: twice(f, {"dtype": "F16"}), (*BAD, NORM), ("duplicate", "twice")),
    Row("same name twice, two ranges", lambda f: twice(f, {"data_offsets": [0, 128]}), (*BAD, NORM), ("duplicate", "twice", "offset")),
    Row("zero-length file", content(b""), BAD, ("empty", "header", "0 bytes")),
    Row("float dimension", entry(K_PROJ, shape=[32.0, 64]), (*BAD, K_PROJ), ("invalid", "integer")),
    Row("boolean dimension", entry(K_PROJ, shape=[True, 64]), (*BAD, K_PROJ), ("invalid", "integer")),
    Row("shape of 100 000 dimensions", entry(K_PROJ, shape=[10**4000] * 100), (*BAD, K_PROJ), ("shape",)),
    Row("200000 brackets", header_bytes(b"[" * 200_000), BAD, ("nest", "recursion")),
    Row("header is an array", header_bytes(b"[]"), BAD, ("map", "object")),
    Row("length one too small", cut_last_brace, BAD, ("header", "JSON")),
    Row("length 0", header_bytes(b"{}", 0), BAD, ("header",)),
    Row("length past the end", header_bytes(b"{}", 2**63), BAD, ("header",)),
    Row("not JSON", header_bytes(b"{'a': 1}"), BAD, ("header", "json")),
    Row("an integer of 10000 digits", header_bytes(b"1" * 10_000), BAD, ("header", "json")),
    Row("invalid UTF-8", header_bytes(b'{"\xff": 1}'), BAD, ("header", "utf")),
    Row("lone surrogate in a name", header_bytes(b'{"\\ud800": {}}'), BAD, ("unicode",)),
    Row("64 unclaimed bytes", hole, BAD, ("hole", "gap")),
    Row("HTML page", content(b"<!DOCTYPE html><html>404</html>"), BAD, ("HTML",)),
    Row("Git LFS pointer", content(b"version https://git-lfs.github.com/spec/v1\n"), BAD, ("git lfs",)),
    Row("header over 100 MB", replaced_by(sparse), BAD, ("too large",)),
    Row("named pipe", replaced_by(os.mkfifo), BAD, ("regular file", "fifo")),
    Row("a folder", replaced_by(Path.mkdir), BAD, ("regular file", "directory")),
    Row("metadata is not text", lambda f: edit_header(f / FILE, lambda h: h.update(__metadata__={"a": 1, "b": {}})), BAD, ("metadata",)),
    Row("negative offsets", entry(K_PROJ, data_offsets=[-4096, 0]), (*BAD, K_PROJ), ("offset",)),
    Row("offsets of the wrong kind", entry(K_PROJ, data_offsets="0"), (*BAD, K_PROJ), ("offset",)),
    Row("offsets over 64 bits", entry(K_PROJ, data_offsets=[0, 10**4000]), (*BAD, K_PROJ), ("overflow",)),
    Row("offsets reversed", entry(K_PROJ, data_offsets=[4096, 0]), (*BAD, K_PROJ), ("offset",)),
    Row("negative dimension", entry(K_PROJ, shape=[-32, -64]), (*BAD, K_PROJ), ("negative",)),
    Row("overlap", overlap, (*BAD, K_PROJ), ("overlap",)),
    Row("7 bytes", content(b"1234567"), BAD, ("too small",)),
    Row("shape does not match range", entry(K_PROJ, shape=[32, 63]), (*BAD, K_PROJ), ("bytes",)),
    Row("shape overflows 64 bits", entry(K_PROJ, shape=[2**40, 2**40]), (*BAD, K_PROJ), ("overflow",)),
    Row("unknown dtype", entry(K_PROJ, dtype="F4"), (*BAD, K_PROJ, "F4"), ("dtype",)),
    Row("dtype is a list", entry(K_PROJ, dtype=[]), (*BAD, K_PROJ), ("dtype",)),
    Row("entry is a number", lambda f: edit_header(f / FILE, lambda h: h.update({K_PROJ: 1})), (*BAD, K_PROJ)),
    Row("entry lacks fields", lambda f: edit_header(f / FILE, lambda h: h.update({K_PROJ: {}})), (*BAD, K_PROJ, "dtype")),
    Row("single file and other index", both, (*BAD, "index")),
    Row("link to /dev/zero", replaced_by(lambda path: path.symlink_to("/dev/zero")), BAD, ("regular file",)),
    Row("link to itself", replaced_by(lambda path: path.symlink_to(path)), BAD, ("symbolic",)),
    Row("ZIP archive appended", append_zip, BAD, ("trailing", "extra")),
    Row("last 1000 bytes missing", keep_bytes(-1000), BAD, HALF),
    Row("half of the file", keep_bytes(0.5), BAD, HALF),
    Row("one byte short", keep_bytes(-1), BAD, HALF),
    Row("layer 1 absent", without_layer, ("model.layers.1.",), ("missing",)),
    Row("weight of shape [0, 64]", tensors_with(**{K_PROJ: torch.zeros(0, 64)}), (K_PROJ,), ("shape",)),
)  # fmt: skip
SURVIVED = rows(
    Row("healthy", lambda _: None),
    Row("consolidated beside shards", lambda f: (both(f), (f / FILE).rename(f / "consolidated.safetensors"))),
    Row("rotary buffers", tensors_with(model__layers__0__rotary_emb__inv_freq=torch.ones(8))),
    Row("adapter left unmerged", tensors_with(model__layers__0__mlp__up_proj__lora_A__weight=torch.ones(2, 64)), warns=("lora_A",)),
    Row("escapes in a name", tensors_with(**{"\x1b[31m\n\0evil\u202e": torch.ones(1)}), warns=("evil",)),
    Row("path as a name", tensors_with(**{"../../../../evil": torch.ones(1)}), warns=("../../../../evil",)),
    Row("50000 empty tensors", tensors_with(**{f"extra.{i}": EMPTY for i in range(50_000)})),
    Row("link to a blob", lambda f: ((f / FILE).rename(f / "blob"), (f / FILE).symlink_to("blob"))),
)  # fmt: skip


@pytest.fixture
def expert_bad(tmp_path):
    return llama(tmp_path / "expert_bad")


@REFUSED
def test_a_malformed_file_is_refused(row, expert_bad):
    refused(row, expert_bad)


@SURVIVED
def test_a_harmless_oddity_is_survived(row, expert_bad):
    checkpoint = survived(row, expert_bad)
    assert set(TENSORS) <= set(checkpoint.tensors)


def test_every_fault_of_a_file_is_reported_at_once(expert_bad):
    entry(K_PROJ, shape=[32, 63])(expert_bad)
    entry(NORM, dtype="F17")(expert_bad)
    _, problems = open_timed(local(expert_bad))
    assert [K_PROJ in str(problems.found[0]), NORM in str(problems.found[1])] == [True, True]


def test_thousands_of_faults_are_counted_not_listed(expert_bad):
    header = header_of({f"t{i}": torch.zeros(1) for i in range(50_000)})
    for item in header.values():
        item["shape"] = [2]
    write_safetensors(expert_bad / FILE, {}, header)
    _, problems = open_timed(local(expert_bad))
    assert len(problems.found) < 30
    assert "more faults" in str(problems.found[-1])


@contextmanager
def unprivileged():
    """Root may read everything, so give that up for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def public_folder():
    """A folder that anyone may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("file", [FILE, "config.json"])
def test_a_file_without_read_permission_is_named(public_folder, file):
    folder = llama(public_folder / "expert_bad")
    (folder / file).chmod(0)
    with unprivileged():
        _, problems = open_timed(local(folder))
    assert f"expert_bad/{file}: no permission" in str(problems.found[0])


def test_a_folder_without_read_permission_is_named(public_folder):
    folder = llama(public_folder / "expert_bad")
    folder.chmod(0)
    with unprivileged():
        _, problems = open_timed(local(folder))
    assert "expert_bad" in str(problems.found[0])
    assert "no permission" in str(problems.found[0])
