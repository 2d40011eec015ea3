"""The HTTP application of the merge service: candidates, by coefficients."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from mergepipe.errors import InputError, printable
from mergepipe.model.fingerprint import weight_digests
from mergepipe.service.asking import Answered
from mergepipe.service.candidates import Candidate, Candidates
from mergepipe.service.guard import Guard, Refusal
from mergepipe.service.quotas import Quotas
from mergepipe.service.routes import add_faults, add_pages, add_questions, bare_app
from mergepipe.service.turns import Turns

__all__ = ["Service", "make_app"]

_CANDIDATE_BYTES = 200_000
_REMEMBERED = 10_000  # descriptions of candidates, of one key


class CandidateBody(BaseModel):
    """A merge of the pool's models: what a recipe says under `merge`, with names of the pool."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")
    merge: dict[str, Any]
    seed: int = Field(0, ge=0)
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="that a checkpoint of it would have; default: the base's"
    )


@dataclass(slots=True)
class Service:
    """What lives between requests."""

    candidates: Candidates
    keys: Mapping[str, str]
    hosts: frozenset[str]
    quotas: Quotas = field(init=False)
    fingerprint: str = field(init=False)
    known: dict[str, OrderedDict[str, Candidate]] = field(default_factory=dict)
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self.quotas = Quotas(self.candidates.pool.limits)
        self.turns = Turns(self.candidates.pool.limits, self._shown)
        self.fingerprint = _fingerprint(self.candidates)

    def _shown(self, error: InputError) -> str:
        """Say what is wrong without saying where the pool's files are."""
        text = str(error)
        for label, model in self.candidates.pool.models.items():
            for place in sorted(model.values(), key=len, reverse=True):
                text = text.replace(place, label)
        return printable(text.replace(str(self.candidates.pool.file.resolve().parent), "pool"))

    async def add(self, owner: str, body: CandidateBody) -> Candidate:
        """Check and remember a candidate; the oldest are forgotten."""
        if body.model_extra:
            what = f"'{printable(next(iter(body.model_extra)), 60)}' is not the client's to say"
            raise Refusal(403, f"{what}: a candidate has merge, seed and dtype")
        fields = body.model_dump(exclude_none=True)
        if len(json.dumps(fields)) > _CANDIDATE_BYTES:
            raise Refusal(413, f"a candidate has at most {_CANDIDATE_BYTES} bytes")
        candidate = await self.turns.work(lambda: self.candidates.checked(fields, owner))
        mine = self.known.setdefault(owner, OrderedDict())
        if candidate.id not in mine:
            spent = self.quotas.use(owner, time.monotonic(), candidates=1)
            if spent:
                raise Refusal(429, "the key's quota of candidates is used up", spent.wait)
        mine[candidate.id] = candidate
        mine.move_to_end(candidate.id)
        while len(mine) > _REMEMBERED:
            mine.popitem(last=False)
        return candidate

    def find(self, owner: str, name: str) -> Candidate:
        """Give one of a key's candidates."""
        mine = self.known.get(owner)
        candidate = None if mine is None else mine.get(name)
        if candidate is None:
            raise Refusal(404, "no such candidate: POST /v1/candidates makes them")
        return candidate

    async def ask(self, owner: str, name: str, job: Callable[[Any], Answered]) -> dict[str, Any]:
        """Ask a candidate, and book the tokens."""
        candidate = self.find(owner, name)
        answered = await self.turns.work(lambda: job(self.candidates.model(candidate)))
        self.quotas.book(owner, tokens=answered.tokens)
        return answered.said

    def described(self, candidate: Candidate) -> dict[str, Any]:
        """What a client is told of its candidate; `fingerprint` tells it from every other."""
        said = json.dumps([self.fingerprint, candidate.fields], sort_keys=True)
        return {
            "id": candidate.id,
            "object": "model",
            "owned_by": candidate.owner,
            "fingerprint": hashlib.sha256(said.encode()).hexdigest()[:32],
        }

    def pool(self) -> dict[str, Any]:
        """What clients may know of the pool: names, sizes, and what may be done."""
        pool, base = self.candidates.pool, self.candidates.base
        return {
            "object": "pool",
            "base": pool.base,
            "models": [self._model(label) for label in pool.models],
            "methods": {
                name: {key: list(span) for key, span in ranges.items()}
                for name, ranges in pool.methods.items()
            },
            "parameters": sum(prod(one.shape) for one in base.tensors.values()),
            "layers": base.config.get("num_hidden_layers"),
            "dtype": pool.dtype,
            "fingerprint": self.fingerprint,
            "limits": pool.limits.model_dump(exclude={"memory", "waiting", "connections"}),
        }

    def _model(self, label: str) -> dict[str, Any]:
        checkpoint = self.candidates.checkpoints[label]
        updates = checkpoint.low_rank.values()
        if not updates:
            count = sum(prod(one.shape) for one in checkpoint.tensors.values())
            return {"name": label, "kind": "model", "parameters": count}
        count = sum(prod(one.a.shape) + prod(one.b.shape) for one in updates)
        rank = max(one.a.shape[0] for one in updates)
        return {"name": label, "kind": "adapter", "parameters": count, "rank": rank}


def _fingerprint(candidates: Candidates) -> str:
    adapters = candidates.adapters.digests if candidates.adapters else {}
    found: dict[str, Any] = {label: [digest] for label, digest in adapters.items()}
    for label, checkpoint in candidates.checkpoints.items():
        folders = {checkpoint.folder, *(one.a.file.parent for one in checkpoint.low_rank.values())}
        found.setdefault(label, []).extend(weight_digests(f) for f in sorted(folders))
    said = json.dumps([candidates.pool.dtype, candidates.pool.base, found], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def make_app(service: Service) -> Guard:
    """Give the application, guarded."""
    about = "Merges of a pool of models, by coefficients; their weights stay here."
    app, limits = bare_app("mergepipe merge service", about), service.candidates.pool.limits
    guard = Guard(app, service.keys, service.hosts, limits, service.quotas)
    add_faults(app)
    add_pages(
        app,
        guard,
        lambda: {
            "candidates_held": service.candidates.held,
            "candidates_made": service.candidates.made,
            "requests_pending": service.turns.pending,
        },
    )
    _add_models(app, service)
    add_questions(app, service, limits)
    return guard


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/pool")
    async def pool() -> dict[str, Any]:
        """Names and sizes of the models, allowed methods, ranges of their parameters."""
        return service.pool()

    @app.post("/v1/candidates")
    async def candidates(body: CandidateBody, request: Request) -> dict[str, Any]:
        """Make a candidate of a merge; its id is a model's name in what follows."""
        return service.described(await service.add(request.state.key, body))

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The candidates of this key."""
        mine = service.known.get(request.state.key, OrderedDict()).values()
        return {"object": "list", "data": [service.described(one) for one in mine]}
