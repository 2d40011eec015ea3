"""The routes that every service has: questions to models, pages, and answers that are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from mergepipe.errors import printable
from mergepipe.service import asking, pages
from mergepipe.service.asking import Answered, ChatBody, CompletionBody, LossBody
from mergepipe.service.guard import Guard, Refusal, problem_body
from mergepipe.service.pool import Limits

__all__ = ["Askable", "add_faults", "add_pages", "add_questions", "bare_app"]


class Askable(Protocol):
    """Models by the names that one key knows them by."""

    async def ask(self, owner: str, name: str, job: Callable[[Any], Answered]) -> dict[str, Any]:
        """Ask a model, and book the tokens."""
        ...


def bare_app(title: str, description: str) -> FastAPI:
    """Give an application without routes, and without pages that load scripts."""
    return FastAPI(title=title, description=description, version="1", docs_url=None, redoc_url=None)


def add_faults(app: FastAPI) -> None:
    """Give errors in OpenAI's form."""

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


def add_pages(app: FastAPI, guard: Guard, gauges: Callable[[], Mapping[str, int]]) -> None:
    """Add what people and monitors read."""

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
        return PlainTextResponse(
            pages.metrics(guard.counts, guard.seconds, gauges()),
            media_type="text/plain; version=0.0.4",
        )


def add_questions(app: FastAPI, models: Askable, limits: Limits) -> None:
    """Add what models can be asked."""

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> dict[str, Any]:
        """Continue prompts, or score them (echo, logprobs), as OpenAI's completions do."""
        _check_tokens(limits, body.max_tokens)
        _check_items(limits, len(body.prompts))
        key = request.state.key
        return await models.ask(key, body.model, lambda m: asking.complete(m, body))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> dict[str, Any]:
        """Answer a conversation, by the base's chat template."""
        _check_tokens(limits, max(body.max_tokens, body.max_completion_tokens or 0))
        return await models.ask(request.state.key, body.model, lambda m: asking.chat(m, body))

    @app.post("/v1/loss")
    async def loss(body: LossBody, request: Request) -> dict[str, Any]:
        """Score texts, or the labels of pairs: each, and their mean loss in nats a token."""
        _check_items(limits, body.count)
        key = request.state.key
        return await models.ask(key, body.candidate, lambda m: asking.loss(m, body))


def _check_tokens(limits: Limits, tokens: int) -> None:
    if tokens > limits.max_tokens:
        raise Refusal(400, f"max_tokens is {tokens}, at most {limits.max_tokens}")


def _check_items(limits: Limits, count: int) -> None:
    if count > limits.items:
        raise Refusal(413, f"{count} items, at most {limits.items} in one request")
