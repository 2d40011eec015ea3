"""A bucket, or whatever else fsspec reaches by a URL: `s3://`, `gs://`, `sftp://` ..."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fsspec  # type: ignore[import-untyped]

from mergepipe.errors import EnvironmentFault, InputError, Problem
from mergepipe.publish.choosing import LAST, is_of_a_model
from mergepipe.publish.item import Item, Parcel, check_unchanged, digest_of_item
from mergepipe.publish.target import Options, State, Target
from mergepipe.publish.words import size

__all__ = ["TARGET"]

_PIECE_BYTES = 8 << 20
_SECONDS_BETWEEN_LINES = 10.0
# Parts that clients cut uploads into: an S3 etag of several parts depends on them.
_PART_BYTES = tuple(count << 20 for count in (5, 8, 16, 50, 64, 100))
_MD5 = re.compile(r"[0-9a-f]{32}")
_OF_PARTS = re.compile(r"[0-9a-f]{32}-([0-9]+)")
_PASSWORD = re.compile(r"//[^/@]*:[^/@]*@")
_EXTRAS = {"s3": "mergepipe[s3]", "s3a": "mergepipe[s3]"}
_ELSEWHERE = {"file": "the folder itself", "local": "the folder itself", "hf": "hf:org/name"}
# What clients raise beside `OSError`; none of their packages is needed here.
_CLIENT_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
    ("paramiko", "SSHException"),
)


class Storage:
    """Files below a URL."""

    def __init__(self, url: str, system: Any, root: str) -> None:
        self.url, self.system, self.root = url, system, root.rstrip("/")

    @property
    def shown(self) -> str:
        """The URL."""
        return self.url

    def look(self, parcel: Parcel) -> State:
        """Give what is there; a file whose server states no digest is read until it differs.

        Raises
        ------
        EnvironmentFault
            if the storage cannot be reached.

        """
        with _faults(self.url):
            self.system.invalidate_cache()
            found = self.system.find(self.root, detail=True)
            start = len(self.root) + 1
            there: dict[str, Any] = {path[start:]: about for path, about in found.items()}
            same = {
                item.name
                for item in parcel.items
                if item.name in there and self._is_same(item, there[item.name])
            }
        return State(
            is_new=not there,
            same=frozenset(same),
            replaced=tuple(name for name in sorted(there) if name in parcel.names - same),
            removed=tuple(
                name for name in sorted(there) if name not in parcel.names and is_of_a_model(name)
            ),
            visibility="visible as the storage has it",
        )

    def send(self, parcel: Parcel, state: State, tell: Callable[[str], None]) -> str:
        """Send what is missing; while it is mixed with another model there is no configuration."""
        again: frozenset[str] = frozenset()
        with _faults(self.url):
            if state.replaced or state.removed:
                again = frozenset(LAST)
                there = {*state.same, *state.replaced}
                self._remove([*(name for name in LAST if name in there), *state.removed])
            missing = [i for i in parcel.items if i.name in again or i.name not in state.same]
            for number, item in enumerate(missing, 1):
                if item.name in LAST:
                    check_unchanged(parcel.items)
                self._put(item, tell)
                tell(f"{item.name}: sent, {number} of {len(missing)}")
        return self.url

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self.system.rm_file(self._path(name))

    def _put(self, item: Item, tell: Callable[[str], None]) -> None:
        path = self._path(item.name)
        self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            self.system.put_file(str(item.path), path, callback=_Lines(item.name, tell))
        finally:  # what else went wrong may come of it
            check_unchanged([item])
        stored = self.system.info(path)["size"]
        if stored != item.size:
            what = f"{stored:,} bytes are there, not {item.size:,}"
            raise EnvironmentFault(Problem(f"{self.url}/{item.name}", what, "publish again"))

    def _is_same(self, item: Item, about: Mapping[str, Any]) -> bool:
        if about.get("size") != item.size:
            return False
        return _has_stated_digest(item, about) or self._reads_the_same(item)

    def _reads_the_same(self, item: Item) -> bool:
        with item.path.open("rb") as ours, self.system.open(self._path(item.name), "rb") as theirs:
            while True:
                piece = ours.read(_PIECE_BYTES)
                if piece != theirs.read(len(piece) or 1):
                    return False
                if not piece:
                    return True


class _Lines(fsspec.Callback):  # type: ignore[misc]
    """Says every ten seconds how far a file is."""

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.name, self.tell, self.spoke = name, tell, time.monotonic()

    def call(self, *_hook: Any, **_more: Any) -> None:
        now = time.monotonic()
        if now - self.spoke >= _SECONDS_BETWEEN_LINES and self.size:
            self.spoke = now
            self.tell(f"{self.name}: {size(self.value)} of {size(self.size)}")


def _has_stated_digest(item: Item, about: Mapping[str, Any]) -> bool:
    """Tell whether the server states the digest that our bytes have."""
    etag = str(about.get("ETag") or about.get("etag") or "").strip('"')
    if _MD5.fullmatch(etag):
        return etag == digest_of_item(item, "md5")
    parts = _OF_PARTS.fullmatch(etag)
    if parts:
        return any(
            _etag_of_parts(item, part) == etag
            for part in _PART_BYTES
            if math.ceil(item.size / part) == int(parts[1])
        )
    md5 = about.get("md5Hash") or about.get("content_md5")
    if isinstance(md5, str):
        return md5 == base64.b64encode(bytes.fromhex(digest_of_item(item, "md5"))).decode()
    return False


def _etag_of_parts(item: Item, part_bytes: int) -> str:
    whole, count = hashlib.md5(usedforsecurity=False), 0
    with item.path.open("rb") as stream:
        while piece := stream.read(part_bytes):
            whole.update(hashlib.md5(piece, usedforsecurity=False).digest())
            count += 1
    return f"{whole.hexdigest()}-{count}"


@contextmanager
def _faults(url: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        what = f"no permission: {error}"
        fix = "check the credentials, and that they may list, read and write there"
        raise EnvironmentFault(Problem(url, what, fix)) from error
    except FileNotFoundError as error:
        what = f"no such bucket or folder: {error}"
        raise EnvironmentFault(Problem(url, what, "make the bucket first")) from error
    except Exception as error:
        if not isinstance(error, _client_errors()):
            raise
        what = f"cannot be reached or written: {error}"
        fix = "what was sent stays: publish again to go on"
        raise EnvironmentFault(Problem(url, what, fix)) from error


def _client_errors() -> tuple[type[Exception], ...]:
    """Give what the clients that were loaded raise."""
    loaded = [getattr(sys.modules[m], name) for m, name in _CLIENT_ERRORS if m in sys.modules]
    return OSError, NotImplementedError, *loaded


def _open(url: str, _options: Options) -> Storage:
    scheme = url.partition(":")[0]
    if scheme in _ELSEWHERE:
        raise InputError(
            Problem(url, f"'{scheme}://' is not for this", f"give {_ELSEWHERE[scheme]}")
        )
    if _PASSWORD.search(url):
        what = "holds a password or key"
        fix = "leave it to the environment, as the storage's own tools do"
        raise InputError(Problem(f"{scheme}://...", what, fix))
    try:
        system, root = fsspec.url_to_fs(url)
    except ImportError as error:
        what = f"needs a package that is not installed: {error}"
        fix = f"pip install '{_EXTRAS[scheme]}'" if scheme in _EXTRAS else ""
        raise EnvironmentFault(Problem(url, what, fix)) from error
    except ValueError as error:
        raise InputError(Problem(url, f"cannot be a target: {error}")) from error
    if not root.strip("/"):
        raise InputError(Problem(url, "names no bucket or folder", "as in s3://bucket/prefix"))
    return Storage(url.rstrip("/"), system, root)


TARGET = Target("s3://bucket/prefix", _open)
