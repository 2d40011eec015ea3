"""The HTTP application: its routes, and the one thread in which the model works."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mergepipe.errors import EnvironmentFault, InputError, printable
from mergepipe.model.fingerprint import weight_digests
from mergepipe.service import asking, pages
from mergepipe.service.asking import Answered, ChatBody, CompletionBody, LossBody
from mergepipe.service.candidates import Candidate, Candidates
from mergepipe.service.guard import Guard, Refusal, problem_body
from mergepipe.service.quotas import Quotas

__all__ = ["Service", "make_app"]

T = TypeVar("T")
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
    guard: Guard | None = None
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "model"))
    _pending: int = 0

    def __post_init__(self) -> None:
        self.quotas = Quotas(self.candidates.pool.limits)
        self.fingerprint = _fingerprint(self.candidates)

    @property
    def pending(self) -> int:
        """Requests that wait for the model, or have it."""
        return self._pending

    async def work(self, job: Callable[[], T]) -> T:
        """Do something in the model's thread, in turn.

        Raises
        ------
        Refusal
            if too many wait, or it takes too long; it is then ended as soon as that is possible.

        """
        limits = self.candidates.pool.limits
        if self._pending > limits.waiting:
            raise Refusal(503, "too many requests wait for the model", 1.0)
        self._pending += 1
        future = self._worker.submit(job)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), limits.seconds)
        except asyncio.TimeoutError:
            raise Refusal(504, f"not done within {limits.seconds:g} s: ask for less") from None
        except InputError as error:
            raise Refusal(400, self._shown(error)) from error
        except EnvironmentFault as error:
            raise Refusal(503, "the service lacks memory or disk for that", 30.0) from error

    def _done(self, _: object) -> None:
        self._pending -= 1

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
        candidate = await self.work(lambda: self.candidates.checked(fields, owner))
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

    def check_tokens(self, tokens: int) -> None:
        """Refuse to write more than the pool says."""
        most = self.candidates.pool.limits.max_tokens
        if tokens > most:
            raise Refusal(400, f"max_tokens is {tokens}, at most {most}")

    def check_items(self, count: int) -> None:
        """Refuse more texts in one request than the pool says."""
        most = self.candidates.pool.limits.items
        if count > most:
            raise Refusal(413, f"{count} items, at most {most} in one request")

    async def ask(self, owner: str, name: str, job: Callable[[Any], Answered]) -> dict[str, Any]:
        """Ask a candidate, and book the tokens."""
        candidate = self.find(owner, name)
        answered = await self.work(lambda: job(self.candidates.model(candidate)))
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
    app = FastAPI(
        title="mergepipe merge service",
        description="Merges of a pool of models, by coefficients; their weights stay here.",
        version="1",
        docs_url=None,
        redoc_url=None,
    )
    limits = service.candidates.pool.limits
    guard = Guard(app, service.keys, service.hosts, limits, service.quotas)
    service.guard = guard
    _add_faults(app)
    _add_pages(app, service)
    _add_models(app, service)
    return guard


def _add_faults(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return JSONResponse(problem_body(error.status, error.what), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            problem_body(error.status_code, str(error.detail)), error.status_code, error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [
            f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}"
            for one in error.errors()[:5]
        ]
        return JSONResponse(problem_body(400, printable("; ".join(faults), 1000)), 400)


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the service is up."""
        return {"status": "ok"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(pages.documentation(app.openapi()))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counts, for Prometheus."""
        assert service.guard is not None, "set when the application was made"
        gauges = {
            "candidates_held": service.candidates.held,
            "candidates_made": service.candidates.made,
            "requests_pending": service.pending,
        }
        return PlainTextResponse(
            pages.metrics(service.guard.counts, service.guard.seconds, gauges),
            media_type="text/plain; version=0.0.4",
        )


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

    _add_questions(app, service)


def _add_questions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> dict[str, Any]:
        """Continue prompts, or score them (echo, logprobs), as OpenAI's completions do."""
        service.check_tokens(body.max_tokens)
        service.check_items(len(body.prompts))
        key = request.state.key
        return await service.ask(key, body.model, lambda m: asking.complete(m, body))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> dict[str, Any]:
        """Answer a conversation, by the base's chat template."""
        service.check_tokens(max(body.max_tokens, body.max_completion_tokens or 0))
        return await service.ask(request.state.key, body.model, lambda m: asking.chat(m, body))

    @app.post("/v1/loss")
    async def loss(body: LossBody, request: Request) -> dict[str, Any]:
        """Score texts, or the labels of pairs: each, and their mean loss in nats a token."""
        service.check_items(body.count)
        key = request.state.key
        return await service.ask(key, body.candidate, lambda m: asking.loss(m, body))
