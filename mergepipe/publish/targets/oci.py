"""A registry of container images: `oci://host/name:tag`, a layer a file, for `oras pull`.

Layers that the registry has are not sent again. The tag names the new model once all of its layers
are there, in one step. Who may push is as `docker login` noted it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from mergepipe.errors import EnvironmentFault, InputError, Problem, printable
from mergepipe.publish.item import Item, Parcel, check_unchanged, digest_of_item
from mergepipe.publish.target import Options, State, Target

__all__ = ["TARGET"]

_NAME = re.compile(
    r"//(?P<host>[A-Za-z0-9.-]+(:[0-9]+)?)/(?P<path>[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r":(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})"
)
_LOCAL = re.compile(r"(localhost|127\.[0-9.]+)(:[0-9]+)?")
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/octet-stream"
_TITLE = "org.opencontainers.image.title"  # the name of the file that a layer is
_EMPTY = b"{}"
_OK, _UNAUTHORIZED, _FORBIDDEN, _MISSING, _TOO_MANY, _SERVER = 300, 401, 403, 404, 429, 500
_WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
_MOST_WAIT_SECONDS = 600.0
_TIMEOUT_SECONDS = (30.0, 300.0)  # to connect, and for an answer


class Registry:
    """A name and a tag in a registry."""

    def __init__(self, host: str, path: str, tag: str) -> None:
        self.name = f"{host}/{path}:{tag}"
        self.insecure = bool(_LOCAL.fullmatch(host))
        self.client = import_module("oras.client").OrasClient(insecure=self.insecure)
        self.container = self.client.get_container(self.name)
        self.client.auth.load_configs(self.container)
        self.base = f"{self.client.prefix}://{host}/v2/{path}"
        self.tag = tag
        self.authorization: dict[str, str] = {}

    @property
    def shown(self) -> str:
        """The address, as it was given."""
        return f"oci://{self.name}"

    def look(self, parcel: Parcel) -> State:
        """Give what the tag names.

        Raises
        ------
        InputError
            if it names something else than files.
        EnvironmentFault
            if the registry refuses or cannot be reached.

        """
        there = self._layers()
        same = frozenset(
            item.name for item in parcel.items if there.get(item.name) == _digest(item)
        )
        return State(
            is_new=not there,
            same=same,
            replaced=tuple(name for name in sorted(there) if name in parcel.names - same),
            removed=tuple(name for name in sorted(there) if name not in parcel.names),
            visibility="visible as the registry has it",
        )

    def send(self, parcel: Parcel, state: State, tell: Callable[[str], None]) -> str:
        """Send the layers that are missing, then the manifest that the tag shall name."""
        for number, item in enumerate(parcel.items, 1):
            try:
                if item.name not in state.same and self._put_blob(_digest(item), item.path):
                    tell(f"{item.name}: sent, {number} of {len(parcel.items)}")
            finally:  # what else went wrong may come of it
                check_unchanged([item])
        empty = f"sha256:{hashlib.sha256(_EMPTY).hexdigest()}"
        self._put_blob(empty, _EMPTY)
        check_unchanged(parcel.items)
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "artifactType": "application/vnd.mergepipe.model",
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": empty,
                "size": len(_EMPTY),
            },
            "layers": [_layer(item) for item in parcel.items],
        }
        url = f"{self.base}/manifests/{self.tag}"
        self._ask("PUT", url, json.dumps(manifest).encode(), {"Content-Type": _MANIFEST})
        return self.shown

    def _layers(self) -> dict[str, str]:
        """Give the digests of the files that the tag names; none if there is no such tag."""
        url = f"{self.base}/manifests/{self.tag}"
        answer = self._ask("GET", url, None, {"Accept": _MANIFEST}, may_miss=True)
        if answer.status_code == _MISSING:
            return {}
        try:
            return {one["annotations"][_TITLE]: one["digest"] for one in answer.json()["layers"]}
        except (ValueError, KeyError, TypeError) as error:
            what = "the tag names something else: an image, or an index of them"
            raise InputError(Problem(self.shown, what, "choose another tag")) from error

    def _put_blob(self, digest: str, content: Path | bytes) -> bool:
        """Send a blob, unless it is there; tell whether it was sent."""
        found = self._ask("HEAD", f"{self.base}/blobs/{digest}", may_miss=True)
        if found.status_code != _MISSING:
            return False
        start = self._ask("POST", f"{self.base}/blobs/uploads/")
        place = urljoin(f"{self.base}/", start.headers.get("Location", ""))
        joined = "&" if "?" in place else "?"
        url = f"{place}{joined}digest={quote(digest, safe='')}"
        self._ask("PUT", url, content, {"Content-Type": _LAYER})
        return True

    def _ask(
        self,
        method: str,
        url: str,
        content: Path | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        may_miss: bool = False,
    ) -> Any:
        """Give the answer to a request, made again after faults that pass."""
        import requests

        has_asked, waits = False, list(_WAITS_SECONDS)
        while True:
            try:
                answer = self._once(method, url, content, headers or {})
            except (requests.ConnectionError, requests.Timeout) as error:
                if not waits:
                    raise self._fault(f"cannot be reached: {type(error).__name__}") from error
                time.sleep(waits.pop(0))
                continue
            code = answer.status_code
            if code == _UNAUTHORIZED and not has_asked:
                has_asked = True
                self.authorization = self._authorize(answer)
            elif code < _OK or (may_miss and code == _MISSING):
                return answer
            elif waits and (code == _TOO_MANY or code >= _SERVER):
                said, wait = answer.headers.get("Retry-After", ""), waits.pop(0)
                time.sleep(min(float(said), _MOST_WAIT_SECONDS) if said.isdigit() else wait)
            else:
                raise self._refusal(code, answer)

    def _once(
        self, method: str, url: str, content: Path | bytes | None, headers: Mapping[str, str]
    ) -> Any:
        with ExitStack() as stack:
            data: Any = content
            if isinstance(content, Path):
                data = stack.enter_context(content.open("rb"))  # streamed, never in memory
            return self.client.session.request(
                method,
                url,
                data=data,
                headers={**headers, **self.authorization},
                timeout=_TIMEOUT_SECONDS,
            )

    def _authorize(self, answer: Any) -> dict[str, str]:
        """Give the header that a registry asks for, by what `docker login` noted."""
        if answer.headers.get("Www-Authenticate", "").lower().startswith("basic"):
            get_backend = import_module("oras.auth").get_auth_backend
            basic = get_backend("basic", self.client.session, self.insecure)
            basic.load_configs(self.container)
            try:
                return dict(basic.get_auth_header())
            except AttributeError:  # nobody logged in
                return {}
        found, _ = self.client.auth.authenticate_request(answer, {}, refresh=True)
        return dict(found)

    def _refusal(self, code: int, answer: Any) -> EnvironmentFault:
        if code in {_UNAUTHORIZED, _FORBIDDEN}:
            host = self.name.partition("/")[0]
            fix = f"`docker login {host}` with a user or token that may push there"
            return self._fault(f"the registry does not let you ({code})", fix)
        return self._fault(f"the registry answers {code}: {printable(answer.text, 200)}")

    def _fault(self, what: str, fix: str = "") -> EnvironmentFault:
        again = "what was sent stays: the same command sends what is missing"
        return EnvironmentFault(Problem(self.shown, what, fix or again))


def _digest(item: Item) -> str:
    return f"sha256:{digest_of_item(item, 'sha256')}"


def _layer(item: Item) -> dict[str, Any]:
    return {
        "mediaType": _LAYER,
        "digest": _digest(item),
        "size": item.size,
        "annotations": {_TITLE: item.name},
    }


def _open(address: str, _options: Options) -> Registry:
    match = _NAME.fullmatch(address)
    if match is None:
        what = "is no name in a registry, with its tag"
        raise InputError(Problem(f"oci:{address}", what, "as in oci://host/name:tag"))
    try:
        return Registry(match["host"], match["path"], match["tag"])
    except ImportError as error:
        what = "needs the package oras, which is not installed"
        raise EnvironmentFault(
            Problem(f"oci:{address}", what, "pip install 'mergepipe[oci]'")
        ) from error


TARGET = Target("oci://host/name:tag", _open)
