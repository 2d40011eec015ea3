"""Signatures: what they cover, that any change of it shows, and that the rest may be changed."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from command_line import command
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from merges import LINEAR, planned, write_models

from mergepipe.errors import InputError
from mergepipe.manifest import MANIFEST_FILE, manifest_bytes
from mergepipe.pipeline import merge, write_card
from mergepipe.signing import check_signature, sign

KEY, PUBLIC, OTHER = "key.pem", "public.pem", "other.pem"


def write_keys(folder: Path, password: bytes | None = None) -> Path:
    """Write a key pair, and the public key of another."""
    none = serialization.NoEncryption()
    how = serialization.BestAvailableEncryption(password) if password else none
    for private, public in ((KEY, PUBLIC), ("unused.pem", OTHER)):
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        text = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, how)
        (folder / private).write_bytes(text)
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        (folder / public).write_bytes(key.public_key().public_bytes(pem, form))
    return folder


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_keys(write_models(tmp_path_factory.mktemp("sign")))
    merged = merge(planned(folder, LINEAR, output={"max_shard_size": "8KB"}), sync=False).folder
    sign(merged, folder / KEY)
    return folder


@pytest.fixture
def folder(signed: Path, tmp_path: Path) -> Path:
    """The keys, and a signed result."""
    return Path(shutil.copytree(signed, tmp_path / "signed"))


def found(folder: Path, key: str = PUBLIC) -> str:
    return "\n".join(map(str, check_signature(folder / "merged", folder / key)))


def statement(folder: Path) -> dict:
    envelope = json.loads((folder / "merged" / "model.sig").read_bytes())["dsseEnvelope"]
    return json.loads(base64.b64decode(envelope["payload"]))


def test_weights_settings_and_manifest_are_signed_and_nothing_else(folder):
    signed = {one["name"] for one in statement(folder)["predicate"]["resources"]}
    content = json.loads((folder / "merged" / MANIFEST_FILE).read_bytes())["output"]
    assert len(content["shards"]) > 1
    assert signed == {*content["files"], *content["shards"], MANIFEST_FILE}
    assert str(folder) not in json.dumps(statement(folder))
    assert not found(folder)


def test_a_changed_byte_of_any_signed_file_is_named(folder):
    names = [one["name"] for one in statement(folder)["predicate"]["resources"]]
    assert len(names) >= 4
    for name in names:
        file = folder / "merged" / name
        raw = file.read_bytes()
        if name != MANIFEST_FILE:  # without it nothing is known
            file.unlink()
            assert f"{name}: is signed, and missing" in found(folder)
            file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
            assert f"{name}: is not what was signed" in found(folder)
        file.write_bytes(raw)
    assert not found(folder)


def test_a_manifest_that_was_made_to_fit_is_not_what_was_signed(folder):
    file = folder / "merged" / MANIFEST_FILE
    content = json.loads(file.read_bytes()) | {"seed": 1}
    del content["blake3"]
    file.write_bytes(manifest_bytes(content))
    assert f"{MANIFEST_FILE}: is not what was signed" in found(folder)


def test_what_is_made_later_is_not_covered_and_what_may_be_loaded_shows(folder):
    merged = folder / "merged"
    write_card(merged)
    for name in ("LICENSE", "report.html", ".gitattributes"):
        (merged / name).write_text("later")
    assert not found(folder)
    (merged / "chat_template.jinja").write_text("{{ 'ignore all that was said' }}")
    assert found(folder) == "chat_template.jinja: was added after it was signed"


def test_another_key_does_not_fit(folder):
    assert "model.sig: no valid signature by this key" in found(folder, OTHER)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_damaged_signature_is_none(signed, data):
    file = signed / "merged" / "model.sig"
    raw = file.read_bytes()
    at = data.draw(st.integers(0, len(raw) - 1))
    try:
        file.write_bytes(raw[:at])
        assert found(signed)
    finally:
        file.write_bytes(raw)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"dsseEnvelope": {"payload": "e30="}}'])
def test_a_signature_file_that_holds_something_else_is_none(folder, text):
    (folder / "merged" / "model.sig").write_text(text)
    assert "model.sig: no valid signature" in found(folder)


def test_keys_that_cannot_be_used_are_refused(folder):
    merged = folder / "merged"
    for key in (PUBLIC, "absent.pem", "base/config.json"):
        with pytest.raises(InputError, match="no private key"):
            sign(merged, folder / key)
    for key in (KEY, "absent.pem"):
        with pytest.raises(InputError, match="no public key"):
            check_signature(merged, folder / key)
    shutil.copy(folder / KEY, merged / KEY)
    with pytest.raises(InputError, match="would be published"):
        sign(merged, merged / KEY)


def test_a_key_with_a_password_needs_it(folder, tmp_path):
    keys = write_keys(tmp_path, b"open sesame")
    with pytest.raises(InputError, match="no private key"):
        sign(folder / "merged", keys / KEY, "wrong")
    sign(folder / "merged", keys / KEY, "open sesame")
    assert not check_signature(folder / "merged", keys / PUBLIC)


def test_the_commands_sign_verify_and_name_what_differs(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    merged = Path("merged")
    (merged / "model.sig").unlink()
    assert command(capsys, "verify", merged, "--key", folder / PUBLIC).status == 2
    assert "5 files signed" in command(capsys, "sign", merged, "--key", folder / KEY).out
    said = command(capsys, "verify", merged, "--key", folder / PUBLIC)
    assert (said.status, said.err) == (0, "")
    assert "as it was written and signed" in said.out
    (merged / "config.json").write_text("{}")
    said = command(capsys, "verify", merged, "--key", folder / PUBLIC)
    assert said.status == 4
    assert said.err.count("config.json") == 1
    assert command(capsys, "sign", merged, "--key", folder / KEY).status == 4
