"""`verify`: whatever is other than it was written is named; whatever is not, is not."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import write_json
from command_line import Said, command, listing
from merges import TIES, run, write_models
from test_tokenizer import tokenizer

from mergepipe.errors import InputError
from mergepipe.manifest import BESIDE_FILES, MANIFEST_FILE, manifest_bytes
from mergepipe.verify import verify


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several shards, with a tokenizer and a folder of its own."""
    models = write_models(tmp_path_factory.mktemp("verify"))
    write_json(models / "base" / "tokenizer.json", tokenizer())
    write_json(models / "base" / "modules.json", [{"path": "1_Pooling"}])
    (models / "base" / "1_Pooling").mkdir()
    write_json(models / "base" / "1_Pooling" / "config.json", {"dimension": 16})
    run(models, TIES, output={"max_shard_size": "8KB"})
    return models / "merged"


@pytest.fixture
def folder(result: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(result, tmp_path / "merged"))


def files(folder: Path) -> list[str]:
    """The files that the manifest answers for, and itself."""
    found = [name for name in listing(folder) if (folder / name).is_file()]
    kept = [name for name in found if name not in BESIDE_FILES]
    assert len(kept) >= 7
    return kept


def edit_manifest(folder: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_bytes())
    del content["blake3"]
    edit(content)
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes(content))


def test_a_checkpoint_as_it_was_written_is_one_line(folder, capsys):
    said = command(capsys, "verify", folder)
    assert (said.status, said.err) == (0, "")
    assert said.out.count("\n") == 1
    assert "as it was written: 21 tensors" in said.out


def where_it_differs(folder: Path) -> str:
    """What is said to differ, or to be unreadable."""
    try:
        return "\n".join(map(str, verify(folder).differences))
    except InputError as error:
        return str(error)


def test_every_flipped_bit_is_named(folder):
    draw, tried = random.Random(0), 0
    for name in files(folder):
        raw = (folder / name).read_bytes()
        for at in sorted(draw.sample(range(len(raw)), min(len(raw), 40))):
            flipped = raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(8)]) + raw[at + 1 :]
            (folder / name).write_bytes(flipped)
            assert name in where_it_differs(folder), at
            tried += 1
        (folder / name).write_bytes(raw)
    assert tried >= 200
    assert not where_it_differs(folder)


def test_every_tensor_that_differs_is_named_all_at_once(folder):
    content = json.loads((folder / MANIFEST_FILE).read_bytes())
    for name in content["output"]["shards"]:
        raw = bytearray((folder / name).read_bytes())
        raw[-1] ^= 1
        (folder / name).write_bytes(raw)
    (folder / "config.json").unlink()
    found = [str(problem) for problem in verify(folder).differences]
    assert len(found) == len(content["output"]["shards"]) + 1
    assert "config.json: is missing" in found
    assert all("tensor 'model." in one or "lm_head" in one for one in found[1:])


HARMS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
}


@pytest.mark.parametrize("word", HARMS)
def test_a_file_that_is_gone_cut_or_longer_is_named(folder, word, capsys):
    for name in files(folder):
        raw = (folder / name).read_bytes()
        HARMS[word](folder / name)
        said = command(capsys, "verify", folder)
        assert said.status in ({2, 4} if name == MANIFEST_FILE else {4})
        assert name in said.err
        assert word in said.err or name == MANIFEST_FILE
        (folder / name).write_bytes(raw)


@pytest.mark.parametrize(
    "name",
    ["extra.safetensors", "pytorch_model.bin", "x.index.json", "1_Pooling/model.safetensors"],
)
def test_weights_that_the_manifest_does_not_name_are_a_difference(folder, name, capsys):
    (folder / name).write_bytes(b"")
    said = command(capsys, "verify", folder)
    assert said.status == 4
    assert f"{name}: not in the manifest" in said.err


def test_other_files_are_noted(folder, capsys):
    (folder / "notes.md").write_text("mine")
    said = command(capsys, "verify", folder)
    assert said.status == 0
    assert "notes.md: not in the manifest" in said.err


def test_json_is_for_machines(folder, capsys):
    assert json.loads(command(capsys, "verify", folder, "--json").out)["same"] is True
    (folder / "config.json").unlink()
    said: Said = command(capsys, "verify", folder, "--json")
    found = json.loads(said.out)
    assert said.status == 4
    assert found["differences"] == [{"where": "config.json", "what": "is missing"}]


def test_without_a_manifest_nothing_can_be_said(folder, capsys):
    (folder / MANIFEST_FILE).unlink()
    said = command(capsys, "verify", folder)
    assert (said.status, said.out) == (2, "")
    assert "no manifest" in said.err
    assert "no such folder" in command(capsys, "verify", folder / "absent").err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "7",
        "[" * 100_000,
        '{"format": 1, "output": 3}',
        '{"format": 2}',
        "\xff",
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(folder, text, capsys):
    (folder / MANIFEST_FILE).write_bytes(text.encode("latin-1"))
    said = command(capsys, "verify", folder)
    assert (said.status, said.out) == (2, "")
    assert MANIFEST_FILE in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "./config.json", ""]
)
def test_a_manifest_that_leads_outside_is_refused(folder, name, capsys):
    edit_manifest(folder, lambda content: content["output"]["files"].update({name: dict(GOOD)}))
    said = command(capsys, "verify", folder)
    assert said.status == 2
    assert "leads outside" in said.err


GOOD = {"size": 0, "blake3": "0" * 64}


@pytest.mark.parametrize("part", ["config.json", "1_Pooling"])
def test_a_link_is_not_followed(folder, part, capsys):
    (folder / part).rename(folder.parent / "elsewhere")
    (folder / part).symlink_to(folder.parent / "elsewhere")
    said = command(capsys, "verify", folder)
    assert said.status == 4
    assert "symbolic link" in said.err


@pytest.mark.parametrize("value", [-1, 1.5, "7", None, True])
def test_a_size_that_is_none_is_refused(folder, value, capsys):
    edit_manifest(
        folder, lambda content: content["output"]["files"]["config.json"].update(size=value)
    )
    assert command(capsys, "verify", folder).status == 2


def test_a_tensor_that_the_manifest_does_not_know_is_named(folder):
    edit_manifest(folder, lambda content: content["output"]["tensors"].pop("lm_head.weight"))
    (problem,) = verify(folder).differences
    assert "tensor 'lm_head.weight' is not in the manifest" in str(problem)


def test_verifying_does_not_load_torch(folder):
    code = (
        "import sys\nfrom mergepipe.cli import main\n"
        f"sys.argv = ['mergepipe', 'verify', {str(folder)!r}]\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
