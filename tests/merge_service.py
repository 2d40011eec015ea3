"""A merge service in a thread of this process, over the quickstart models."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx2
import yaml

from mergepipe.execute import Resources
from mergepipe.service.pool import read_pool
from mergepipe.service.serving import Address, guarded, server_of

RECIPES = Path(__file__).parent.parent / "recipes"
QUICKSTART = RECIPES / "quickstart"
ADAPTERS = RECIPES / "search" / "evo" / "pool"
MODELS = {label: str(QUICKSTART / label) for label in ("base", "german", "python")}
METHODS = {
    "task_arithmetic": {"weight": [-1.5, 1.5], "lambda": [0, 2]},
    "linear": None,
    "lora_composition": {"density": [0, 1], "weight": [-1.5, 1.5]},
}


def write_pool(folder, adapters=(), methods=METHODS, **fields):
    base = MODELS["base"]
    extra = {name: {"path": base, "adapter": str(ADAPTERS / name)} for name in adapters}
    kept = {key: value for key, value in methods.items() if adapters or key != "lora_composition"}
    pool = {"pool": 1, "base": "base", "models": MODELS | extra, "methods": kept, **fields}
    (folder / "pool.yaml").write_text(yaml.safe_dump(pool, sort_keys=False))
    return folder / "pool.yaml"


class Served:
    """What is served, and how to ask it raw."""

    def __init__(self, app, port, scheme="http"):
        self.app, self.port = app, port
        self.root = f"{scheme}://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"

    def ask(self, method, path, body=None, **options):
        data = body if isinstance(body, (bytes, str)) or body is None else json.dumps(body)
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        with httpx2.Client(trust_env=False, timeout=30, **options) as client:
            return client.request(method, self.root + path, content=data, headers=headers)

    def post(self, path, body, **options):
        return self.ask("POST", path, body, **options)

    def candidate(self, weight=0.5, label="german", **options):
        merge = {"method": "task_arithmetic", "base": "base", "models": {label: {"weight": weight}}}
        return self.post("/v1/candidates", {"merge": merge}, **options).json()["id"]


@contextmanager
def serving(file, *, port=0, **address):
    """Serve a pool until the block ends."""
    where = Address(port=port, **address)
    app = guarded(read_pool(file), where, Resources(threads=1))
    listens = threading.Event()
    server = server_of(app, where, announce=listens.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    assert listens.wait(20), "the server has not begun"
    found = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(app, found, "https" if where.cert else "http")
    finally:
        server.should_exit = True
        thread.join(20)
