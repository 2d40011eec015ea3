"""The HTTP application of a base whose adapters are loaded at run time, by the routes of vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from mergepipe.errors import InputError, printable
from mergepipe.service.adapters import Adapters, Loaded
from mergepipe.service.asking import Answered
from mergepipe.service.guard import Guard
from mergepipe.service.quotas import Quotas
from mergepipe.service.routes import add_faults, add_pages, add_questions, bare_app
from mergepipe.service.turns import Turns

__all__ = ["AdapterService", "make_adapter_app"]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class LoadBody(_Body):
    """An adapter of the folder, and the name that it is asked by."""

    lora_name: str = Field(max_length=200)
    lora_path: str = Field(max_length=4000, description="its folder, in that of the service")


class UnloadBody(_Body):
    """The name of an adapter that was loaded."""

    lora_name: str = Field(max_length=200)


@dataclass(slots=True)
class AdapterService:
    """What lives between requests."""

    adapters: Adapters
    keys: Mapping[str, str]
    hosts: frozenset[str]
    quotas: Quotas = field(init=False)
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self.quotas = Quotas(self.adapters.pool.limits)
        self.turns = Turns(self.adapters.pool.limits, self._shown)

    def _shown(self, error: InputError) -> str:
        """Say what is wrong without saying where the files are."""
        pool, text = self.adapters.pool, str(error)
        text = text.replace(str(self.adapters.folder), "the folder of adapters")
        return printable(text.replace(pool.models[pool.base]["path"], pool.base))

    async def ask(self, owner: str, name: str, job: Callable[[Any], Answered]) -> dict[str, Any]:
        """See `Askable`."""
        answered = await self.turns.work(lambda: job(self.adapters.model(owner, name)))
        self.quotas.book(owner, tokens=answered.tokens)
        return answered.said

    def listed(self, owner: str) -> list[dict[str, Any]]:
        """Say what the key can ask: the base, and the adapters that it has loaded."""
        base = self.adapters.pool.base
        bare = _entry(base, base, None, self.adapters.base_fingerprint)
        mine = self.adapters.by_key.get(owner, {}).values()
        return [bare, *(_entry(o.name, o.path, base, o.fingerprint) for o in mine)]


def _entry(name: str, root: str, parent: str | None, fingerprint: str) -> dict[str, Any]:
    said = {"id": name, "object": "model", "owned_by": "mergepipe", "root": root}
    return said | {"parent": parent, "fingerprint": fingerprint}


def make_adapter_app(service: AdapterService) -> Guard:
    """Give the application, guarded."""
    limits = service.adapters.pool.limits
    app = bare_app("mergepipe adapter service", "A base, and LoRA adapters loaded at run time.")
    guard = Guard(app, service.keys, service.hosts, limits, service.quotas)
    add_faults(app)
    add_pages(
        app,
        guard,
        lambda: {
            "adapters_loaded": service.adapters.held,
            "requests_pending": service.turns.pending,
        },
    )
    _add_adapters(app, service)
    add_questions(app, service, limits)
    return guard


def _add_adapters(app: FastAPI, service: AdapterService) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The base, and the adapters that this key has loaded."""
        return {"object": "list", "data": service.listed(request.state.key)}

    @app.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
    async def load(body: LoadBody, request: Request) -> str:
        """Load an adapter of the folder; its name is a model's in what follows."""
        key = request.state.key
        made: Loaded = await service.turns.work(
            lambda: service.adapters.load(key, body.lora_name, body.lora_path)
        )
        return f"Success: LoRA adapter '{made.name}' added successfully."

    @app.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
    async def unload(body: UnloadBody, request: Request) -> str:
        """Forget an adapter; its files stay."""
        key = request.state.key
        await service.turns.work(lambda: service.adapters.unload(key, body.lora_name))
        return f"Success: LoRA adapter '{body.lora_name}' removed successfully."
