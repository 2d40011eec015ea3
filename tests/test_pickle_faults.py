"""Pickled checkpoints that run code, inflate, or hold something else than tensors."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoints import llama, llama_shapes, random_tensors, write_json
from faulty import Row, local, open_timed, refused, rows, survived

from mergepipe.checkpoint import read_range

FILE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
TENSORS = random_tensors(llama_shapes())
UNSAFE = ("pickle", "unsafe", "weights_only")
CANARY = Path("canary")


class Evil:
    """Unpickles into a shell command that leaves a file behind."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


def saved(state, **options):
    return lambda folder: torch.save(state, folder / FILE, **options)


def bare_pickle(folder):
    (folder / FILE).write_bytes(pickle.dumps({"a": Evil()}))


def sharded(folder, first="pytorch_model-00001-of-00002.bin"):
    """Two shards, the second of them malicious."""
    second = "pytorch_model-00002-of-00002.bin"
    torch.save(TENSORS, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"evil": Evil()}, folder / second)
    weight_map = dict.fromkeys(TENSORS, first) | {"evil": second}
    write_json(folder / INDEX, {"weight_map": weight_map})


def outside(folder):
    torch.save({"evil": Evil()}, folder.parent / "evil.bin")
    write_json(folder / INDEX, {"weight_map": {"evil": "../evil.bin"}})


def rezipped(folder, compression=zipfile.ZIP_STORED, state=TENSORS, **replaced):
    """The pickle of `state`, its zip entries written again, some of them `replaced`."""
    saved(state)(folder)
    with zipfile.ZipFile(folder / FILE) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(folder / FILE, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, replaced.get(name.rpartition("/")[2], data))


def inflating(folder):
    """A storage of 256 MB in a file of 256 kB."""
    rezipped(folder, zipfile.ZIP_DEFLATED, {"a": torch.zeros(1)}, **{"0": bytes(2**28)})


def appended(name, data):
    """Harm: one more zip entry."""

    def harm(folder):
        saved(TENSORS)(folder)
        with zipfile.ZipFile(folder / FILE, "a") as archive:
            archive.writestr(name, data)

    return harm


def cut(folder):
    saved(TENSORS)(folder)
    os.truncate(folder / FILE, (folder / FILE).stat().st_size // 2)


def expanded(folder):
    """A view of 10**12 elements of one number: contiguous, it would take 4 TB."""
    saved({"a": torch.zeros(1).expand(10**12)})(folder)


BAD = ("expert_bad", FILE)
REFUSED = rows(
    Row("bare pickle runs code", bare_pickle, BAD, UNSAFE),
    Row("legacy pickle runs code", saved({"a": Evil()}, _use_new_zipfile_serialization=False), BAD, UNSAFE),
    Row("zip pickle runs code", saved({"a": Evil(), **TENSORS}), BAD, UNSAFE),
    Row("one malicious shard", sharded, ("expert_bad", "pytorch_model-00002-of-00002.bin"), UNSAFE),
    Row("index points outside", outside, ("expert_bad", "index.json"), ("outside", "not allowed")),
    Row("a storage that inflates", inflating, BAD, ("inflate", "compressed")),
    Row("big-endian", lambda f: rezipped(f, byteorder=b"big"), BAD, ("big-endian",)),
    Row("a second byte order", appended("pytorch_model/BYTEORDER", b"big"), BAD, ("duplicate",)),
    Row("compressed entries", lambda f: rezipped(f, zipfile.ZIP_DEFLATED), BAD, ("compressed", "inflate")),
    Row("zip cut in half", cut, BAD, ("truncated",)),
    Row("more elements than stored", expanded, BAD, ("elements",)),
    Row("nested state dict", saved({"state_dict": TENSORS}), (*BAD, "state_dict")),
    Row("a list of tensors", saved(list(TENSORS.values())), BAD, ("state dict",)),
    Row("a number among the tensors", saved({**TENSORS, "epoch": 3}), (*BAD, "epoch")),
    Row("numbers as names", saved(dict(enumerate(TENSORS.values()))), BAD, ("names",)),
    Row("a sparse tensor", saved({"a": torch.eye(3).to_sparse()}), BAD, ("sparse",)),
    Row("not a pickle", lambda f: (f / FILE).write_bytes(b"<html>"), BAD, UNSAFE),
    Row("empty", lambda f: (f / FILE).write_bytes(b""), BAD, ("empty",)),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return llama(tmp_path / "expert_bad")


@pytest.fixture
def pickled(folder):
    """A folder whose weights are to be pickled."""
    (folder / "model.safetensors").unlink()
    return folder


@REFUSED
def test_a_bad_pickle_is_refused_and_not_run(row, pickled):
    message = refused(row, pickled)
    assert not CANARY.exists()
    assert "weights_only=False" not in message
    assert "safetensors" in message or "index" in message


def test_other_pickles_beside_the_weights_are_never_opened(folder):
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", FILE):
        torch.save({"a": Evil()}, folder / name)
        (folder / name).chmod(0)
    survived(Row("malicious training_args.bin", lambda _: None), folder)
    assert not CANARY.exists()


def test_a_zip_written_by_another_tool_is_read_right(pickled):
    """Its storages are not where torch computes them to be."""
    checkpoint = survived(Row("rezipped", rezipped), pickled)
    for name, tensor in TENSORS.items():
        assert torch.equal(read_range(checkpoint.tensors[name], 0, tensor.numel()), tensor.view(-1))


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_pickle_is_refused_or_read_but_never_crashes(pickled, seed):
    saved(TENSORS)(pickled)
    raw = bytearray((pickled / FILE).read_bytes())
    draw = torch.Generator().manual_seed(seed)
    for at in torch.randint(0, 4000, (20,), generator=draw).tolist():
        raw[at] ^= 1 << (at % 8)
    (pickled / FILE).write_bytes(bytes(raw))
    open_timed(local(pickled))
