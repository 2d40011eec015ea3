"""A server on this machine that speaks the hub's upload and download protocol, and its faults.

Repositories live in memory. Large files come by the LFS batch API, others in the commit; a commit
that names an object nobody uploaded is refused. Faults are asked for by `fail`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_state import Hub, Repo, git_sha1

TOKEN = "hf_publishpublishpublishpublish01"
_LARGE = (".safetensors", ".bin", ".model")
_PART_BYTES = 2500  # larger objects are uploaded in parts


def status(code: int, message: str = "", **headers: str) -> Callable[[Handler], bool]:
    """Answer with a status and nothing else."""

    def act(handler: Handler) -> bool:
        handler.body()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.reply(code, {"error": message}, **named)
        return True

    return act


def cut(handler: Handler) -> bool:
    """Break the connection in the middle of what comes in."""
    handler.rfile.read(min(1000, int(handler.headers.get("Content-Length", 0))))
    return _break(handler)


def _break(handler: Handler) -> bool:
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()
    handler.close_connection = True
    return True


def mute(handler: Handler) -> bool:
    """Do what is asked, and let the answer be lost."""
    handler.is_mute = True
    return False


def refuse_after(handler: Handler) -> bool:
    """Do what is asked, and say that the gateway gave up."""
    handler.is_late = True
    return False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer's body does not wait until its head is acknowledged
    hub: Hub
    is_mute = is_late = False

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, code: int, content: object = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self.is_mute:
            _break(self)
            return
        if self.is_late:
            code, data, headers = 504, b"{}", {}
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _handle(self) -> None:
        self.is_mute = self.is_late = False
        line = f"{self.command} {self.path}"
        self.hub.requests.append(line)
        for fault in self.hub.faults:
            if fault.meets(line) and fault.act(self):
                return
        parts = urlsplit(self.path)
        self.query = {name: one[0] for name, one in parse_qs(parts.query).items()}
        if not parts.path.startswith(("/storage/", "/api/validate-yaml")) and self.headers.get(
            "Authorization"
        ) != (f"Bearer {TOKEN}"):
            self.body()
            self.reply(401, {"error": "Invalid username or password."})
            return
        for method, pattern, act in ROUTES:
            found = re.fullmatch(pattern, parts.path)
            if found and self.command in method:
                act(self, *(unquote(group or "") for group in found.groups()))
                self.hub.after(line)
                return
        self.body()
        self.reply(404, {"error": f"no route for {line}"})

    do_GET = do_POST = do_PUT = do_HEAD = _handle  # noqa: N815

    def absent(self, what: str) -> None:
        self.reply(404, {"error": what}, **{"X-Error-Code": what, "X-Error-Message": what})

    def find(self, repo: str, kind: str = "model") -> Repo | None:
        found = self.hub.repos.get(repo)
        if found is None or found.kind != kind:
            self.body()
            self.absent("RepoNotFound")
            return None
        return found

    def create(self) -> None:
        asked = json.loads(self.body())
        owner, name = asked.get("organization") or "me", asked["name"]
        repo = f"{owner}/{name}"
        if owner not in self.hub.owners:
            message = f"You don't have the rights to create a model under the namespace {owner}"
            self.reply(403, {"error": message}, **{"X-Error-Message": message})
            return
        if repo in self.hub.repos:
            self.reply(409, {"error": "exists", "url": f"{self.hub.url}/{repo}"})
            return
        made = self.hub.add(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        made.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.reply(200, {"url": f"{self.hub.url}/{repo}"})

    def about(self, kind: str, repo: str, branch: str | None = None) -> None:
        found = self.find(repo, kind.removesuffix("s"))
        if found is None:
            return
        if branch and branch not in found.branches:
            self.absent("RevisionNotFound")
            return
        head = found.head(branch or "main")
        self.reply(
            200,
            {
                "id": repo,
                "private": found.private,
                "sha": head.sha,
                "tags": [],
                "siblings": [{"rfilename": name} for name in head.files],
            },
        )

    def tree(self, repo: str, branch: str) -> None:
        found = self.find(repo)
        if found is None:
            return
        if branch not in found.branches and branch not in {c.sha for c in found.branches["main"]}:
            self.absent("RevisionNotFound")
            return
        head = found.head(branch) if branch in found.branches else found.head()
        entries = []
        for name, content in head.files.items():
            oid, size = git_sha1(content), len(content)
            entry = {"type": "file", "path": name, "oid": oid, "size": size}
            if name in head.large:
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha, "size": size, "pointerSize": 130}
                entry["oid"] = git_sha1(sha.encode())  # of the pointer
            entries.append(entry)
        self.reply(200, entries)

    def branch(self, repo: str, branch: str) -> None:
        self.body()
        found = self.find(repo)
        if found is not None:
            found.branches.setdefault(branch, list(found.branches["main"]))
            self.reply(200, {})

    def validate(self) -> None:
        text = json.loads(self.body())["content"]
        bad = not isinstance(yaml.safe_load(text.split("---")[1])["license"], str)
        errors = [{"message": '"license" must be a string'}] if bad else []
        self.reply(400 if bad else 200, {"errors": errors, "warnings": []})

    def preupload(self, repo: str, _branch: str) -> None:
        asked = json.loads(self.body())
        if self.hub.repos.get(repo) is None:
            self.absent("RepoNotFound")
            return
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for one in asked["files"]
        ]
        self.reply(200, {"files": files})

    def batch(self, _repo: str) -> None:
        objects = []
        for one in json.loads(self.body())["objects"]:
            oid, size = one["oid"], one["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                place = f"{self.hub.url}/storage/{oid}"
                upload: dict[str, object] = {"href": f"{place}?X-Amz-Signature=secretsignature"}
                if size > _PART_BYTES:
                    count = -(-size // _PART_BYTES)
                    parts = {f"{i:05}": f"{place}/{i}" for i in range(1, count + 1)}
                    upload = {"href": place, "header": {"chunk_size": str(_PART_BYTES), **parts}}
                verify = {"href": f"{self.hub.url}/api/verify"}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str, part: str = "") -> None:
        content = self.body()
        if part:
            self.hub.objects[f"{oid}/{part}"] = content
            self.reply(200, b"", ETag=hashlib.md5(content).hexdigest())
        elif hashlib.sha256(content).hexdigest() != oid:
            self.reply(400, {"error": "XAmzContentSHA256Mismatch"})
        else:
            self.hub.objects[oid] = content
            self.reply(200, b"")

    def complete(self, oid: str) -> None:
        parts = json.loads(self.body())["parts"]
        content = b"".join(self.hub.objects.pop(f"{oid}/{one['partNumber']}") for one in parts)
        if hashlib.sha256(content).hexdigest() != oid:
            self.reply(400, {"error": "XAmzContentSHA256Mismatch"})
            return
        self.hub.objects[oid] = content
        self.reply(200, {})

    def verify(self) -> None:
        asked = json.loads(self.body())
        self.reply(200 if asked["oid"] in self.hub.objects else 404, {})

    def commit(self, repo: str, branch: str) -> None:
        lines = [json.loads(line) for line in self.body().splitlines()]
        found = self.find(repo)
        if found is None:
            return
        head = found.head(branch)
        if lines[0]["value"].get("parentCommit", head.sha) != head.sha:
            message = "A commit has happened since. Please refresh and try again."
            self.reply(412, {"error": message}, **{"X-Error-Message": message})
            return
        files, large = dict(head.files), set(head.large)
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            large.discard(path)
            if line["key"] == "deletedFile":
                del files[path]
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    self.reply(400, {"error": f"LFS object {value['oid']} does not exist"})
                    return
                files[path] = self.hub.objects[value["oid"]]
                large.add(path)
            else:
                files[path] = base64.b64decode(value["content"])
        pull = None
        if self.query.get("create_pr"):
            found.pulls.append(lines[0]["value"]["summary"])
            pull = f"{self.hub.url}/{repo}/discussions/{len(found.pulls)}"
            branch = f"refs/pr/{len(found.pulls)}"
            found.branches[branch] = [head]
        title = lines[0]["value"]["summary"]
        made = self.hub.commit(found, branch, title, files, tuple(large))
        self.reply(
            200,
            {
                "commitUrl": f"{self.hub.url}/{repo}/commit/{made.sha}",
                "commitOid": made.sha,
                "pullRequestUrl": pull,
            },
        )

    def discussions(self, repo: str) -> None:
        found = self.find(repo)
        if found is None:
            return
        entries = [
            {
                "title": title,
                "num": number,
                "author": {"name": "me"},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "isPullRequest": True,
                "repo": {"name": repo, "type": "model"},
            }
            for number, title in enumerate(found.pulls, 1)
        ]
        self.reply(200, {"discussions": entries, "count": len(entries), "start": 0})

    def resolve(self, repo: str, branch: str, path: str) -> None:
        found = self.find(repo)
        if found is None:
            return
        head = found.head(branch) if branch in found.branches else found.head()
        if path not in head.files:
            self.absent("EntryNotFound")
            return
        content = head.files[path]
        tag = hashlib.sha256(content).hexdigest() if path in head.large else git_sha1(content)
        self.reply(200, content, **{"ETag": f'"{tag}"', "X-Repo-Commit": head.sha})


_REPO = "([^/]+/[^/]+)"
ROUTES = (
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET", rf"/api/(models|datasets)/{_REPO}", Handler.about),
    ("GET", rf"/api/(models|datasets)/{_REPO}/revision/([^/]+)", Handler.about),
    ("GET", rf"/api/models/{_REPO}/tree/([^/]+)", Handler.tree),
    ("POST", rf"/api/models/{_REPO}/branch/([^/]+)", Handler.branch),
    ("POST", rf"/api/models/{_REPO}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/([^/]+)", Handler.commit),
    ("GET", rf"/api/models/{_REPO}/discussions", Handler.discussions),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/storage/([0-9a-f]+)(?:/([0-9]+))?", Handler.put),
    ("POST", r"/storage/([0-9a-f]+)", Handler.complete),
    ("POST", r"/api/verify", Handler.verify),
    ("GETHEAD", rf"/{_REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Connections that tests break are no news."""


@contextmanager
def hub_running() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Bound", (Handler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
