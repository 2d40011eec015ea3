"""A registry of container images on this machine: the OCI distribution protocol, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "me", "hunter2hunter2"


@dataclass
class Registry:
    host: str = ""
    asks: str = ""  # "Basic" or "Bearer": who may come in
    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)  # statuses of the next uploads

    def files(self, tag: str) -> dict[str, bytes]:
        layers = json.loads(self.tags[tag])["layers"]
        title = "org.opencontainers.image.title"
        return {one["annotations"][title]: self.blobs[one["digest"]] for one in layers}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # see hub_server.py
    registry: Registry

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _may_come_in(self) -> bool:
        said = self.headers.get("Authorization", "")
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.path.startswith("/token"):
            if said == basic:
                self.reply(200, b'{"token": "letmein"}')
            else:
                self.reply(401)
            return False
        if said == {"": said, "Basic": basic, "Bearer": "Bearer letmein"}[self.registry.asks]:
            return True
        realm = f'realm="http://{self.registry.host}/token",service="x",scope="repository:x:push"'
        self.reply(401, WWW_Authenticate=f"{self.registry.asks} {realm}")
        return False

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        registry, (path, query) = self.registry, urlsplit(self.path)[2:4]
        registry.requests.append(f"{self.command} {path}")
        if not self._may_come_in():
            return
        name, _, what = path.removeprefix("/v2/").partition("/blobs/")
        if self.command == "PUT" and registry.failures:
            self.reply(registry.failures.pop(0), Retry_After="0")
        elif "/manifests/" in path:
            self._manifest(path.rpartition("/")[2], body)
        elif self.command == "HEAD":
            self.reply(200 if what in registry.blobs else 404)
        elif self.command == "GET":
            self.reply(200, registry.blobs[what])
        elif self.command == "POST":
            self.reply(202, Location=f"/v2/{name}/blobs/uploads/1?state=x")
        else:
            digest = parse_qs(query)["digest"][0]
            if digest == f"sha256:{hashlib.sha256(body).hexdigest()}":
                registry.blobs[digest] = body
                self.reply(201)
            else:
                self.reply(400, b"DIGEST_INVALID")

    def _manifest(self, tag: str, body: bytes) -> None:
        if self.command != "PUT":
            found = self.registry.tags.get(tag)
            kind = "application/vnd.oci.image.manifest.v1+json"
            self.reply(404 if found is None else 200, found or b"", Content_Type=kind)
            return
        named = re.findall(r'"digest": ?"([^"]+)"', body.decode())
        if all(digest in self.registry.blobs for digest in named):
            self.registry.tags[tag] = body
            self.reply(201)
        else:
            self.reply(400, b"MANIFEST_BLOB_UNKNOWN")

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815


@contextmanager
def registry_running() -> Iterator[Registry]:
    registry = Registry()
    handler = type("Bound", (_Handler,), {"registry": registry})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        registry.host = f"127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield registry
        finally:
            server.shutdown()
