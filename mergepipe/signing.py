"""A checkpoint signed with an elliptic-curve key, in the format of the OpenSSF's model signing.

The signature, `model.sig`, covers the manifest and every file that it lists: weights, settings and
tokenizer; results.jsonl too, whose digest the manifest holds. What may be made or changed later it
does not cover: the card, a report, the record of the run, licence texts. Any other file that
stands beside the signed ones is a difference, since loaders may read it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergepipe.errors import EnvironmentFault, InputError, Problem, printable
from mergepipe.manifest import BESIDE_FILES, MANIFEST_FILE, SIGNATURE_FILE, read_manifest

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["check_signature", "sign"]

_MISMATCH = re.compile(r"Hash mismatch for \\?'(.*?)\\?': Expected")
# People and servers put these beside a model whenever they like; nothing loads them.
_HARMLESS = re.compile(
    r"(LICENSE|LICENCE|NOTICE|USE_POLICY)(\.(md|txt))?|[^/]+\.(asc|minisig|pub)"
    r"|\.gitattributes|\.gitignore|(\.git|\.cache/huggingface)/.*"
)
_FAULTS = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, binascii.Error)


def sign(folder: Path, key: Path, password: str | None = None) -> tuple[str, ...]:
    """Sign a checkpoint with a private key, PEM, and give the names of the files that are covered.

    It is not verified first. A signature that is there is replaced.

    Raises
    ------
    InputError
        if there is no manifest, a file that it lists is missing, or the key is none or inside the
        folder.
    EnvironmentFault
        if a package is missing, or the disk fails.

    """
    covered = _covered(folder)
    model_signing = _package()
    if folder.resolve() in key.resolve().parents:
        what = "the private key is inside the folder, and would be published with it"
        raise InputError(Problem(str(key), what, "move it elsewhere"))
    missing = [name for name in covered if not (folder / name).is_file()]
    if missing:
        raise InputError(*(Problem(name, "is missing", "merge again") for name in missing))
    rest = [name for name in _names(folder) if name not in covered]
    fresh = folder / f".{SIGNATURE_FILE}.new"
    signer = _signer(model_signing, key, password)
    try:
        hashing = model_signing.hashing.Config().set_ignored_paths(
            paths=[*rest, fresh.name], ignore_git_paths=False
        )
        signer.set_hashing_config(hashing).sign(folder.resolve(), fresh.absolute())
        fresh.replace(folder / SIGNATURE_FILE)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise EnvironmentFault(Problem(str(folder / SIGNATURE_FILE), what)) from error
    except ValueError as error:
        raise InputError(Problem(str(folder), f"cannot be signed: {error}")) from error
    finally:
        fresh.unlink(missing_ok=True)
    return covered


def _signer(model_signing: ModuleType, key: Path, password: str | None) -> Any:
    secret: Any = password.encode() if password else None  # typed as text there, used as bytes
    try:
        return model_signing.signing.Config().use_elliptic_key_signer(
            private_key=key, password=secret
        )
    except (ValueError, TypeError, OSError) as error:
        raise InputError(Problem(str(key), f"no private key that can be used: {error}")) from error


def check_signature(folder: Path, key: Path) -> tuple[Problem, ...]:
    """Hold a checkpoint against its signature with a public key, PEM; give what differs.

    Raises
    ------
    InputError
        if there is no manifest or no signature, or the key is none.
    EnvironmentFault
        if a package is missing.

    """
    covered, file = _covered(folder), folder / SIGNATURE_FILE
    model_signing = _package()
    if file.is_symlink() or not file.is_file():
        what = f"not signed: {SIGNATURE_FILE} is missing"
        raise InputError(Problem(str(folder), what, "`mergepipe sign` signs it"))
    try:
        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(Problem(str(key), f"no public key that can be used: {error}")) from error
    try:
        signed = _signed(file)
        missing = [name for name in signed if not (folder / name).is_file()]
        if missing:
            return tuple(Problem(name, "is signed, and missing") for name in missing)
        verifier.set_ignore_unsigned_files(True).verify(folder.resolve(), file.absolute())
    except _FAULTS as error:
        return tuple(_said(error))
    return tuple(_unsigned(folder, covered, signed))


def _package() -> ModuleType:
    try:
        import model_signing
    except ImportError as error:
        what, fix = f"signing needs a package: {error}", "pip install 'mergepipe[sign]'"
        raise EnvironmentFault(Problem("", what, fix)) from error
    return model_signing


def _covered(folder: Path) -> tuple[str, ...]:
    manifest = read_manifest(folder)
    return tuple(sorted({*manifest.files, *manifest.shards, MANIFEST_FILE}))


def _names(folder: Path) -> Iterator[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    yield from sorted(path.relative_to(folder).as_posix() for path in found)


def _signed(file: Path) -> list[str]:
    """Give the names in a signature, which is still to be verified."""
    envelope: Mapping[str, Any] = json.loads(file.read_bytes())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    return [str(one["name"]) for one in statement["predicate"]["resources"]]


def _said(error: Exception) -> Iterator[Problem]:
    """Say what is wrong: which files differ, or what the signature is not."""
    names = _MISMATCH.findall(str(error))
    for name in names:
        yield Problem(printable(name), "is not what was signed")
    if not names:
        what = printable(" ".join(str(error).split()), 300) or type(error).__name__
        yield Problem(SIGNATURE_FILE, f"no valid signature by this key: {what}")


def _unsigned(folder: Path, covered: tuple[str, ...], signed: list[str]) -> Iterator[Problem]:
    """Name what the manifest lists but nobody signed, and what was added that may be loaded."""
    for name in covered:
        if name not in signed:
            yield Problem(name, "is in the manifest, and was not signed")
    for name in _names(folder):
        if name not in signed and name not in BESIDE_FILES and not _HARMLESS.fullmatch(name):
            yield Problem(name, "was added after it was signed")
