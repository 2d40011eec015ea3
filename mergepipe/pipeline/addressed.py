"""Models behind a server, as recipes name them (`beside:`) and the command line.

The command line's are `api:URL?option=value#MODEL`. Who types an address trusts it with requests,
and a key goes there where `key_env` names it, or the environment binds it to that host
(`OPENAI_BASE_URL`). A recipe's may be anybody's: the environment alone says what it may do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, Field, ValidationError

from mergepipe.errors import (
    EnvironmentFault,
    InputError,
    Problem,
    Problems,
    did_you_mean,
    printable,
)
from mergepipe.model import Model
from mergepipe.recipe import ServedSpec

__all__ = [
    "PREFIX",
    "Addressed",
    "api_model_of",
    "check_served",
    "read_address",
    "served_model",
]

PREFIX = "api:"
_FORM = "write api:https://HOST/v1#MODEL, with options as in ?kind=chat&max_length=2048"
_OPENAI = "https://api.openai.com"

_Count = Annotated[int, Field(gt=0)]


class _Options(BaseModel, frozen=True, extra="forbid"):
    """What may be said of a server; numbers are read from text."""

    kind: Literal["completions", "chat"] = "completions"
    key_env: str | None = None
    prefix: str = ""  # the text of the token that starts every sequence
    tokenizer: Path | None = None  # a folder, for texts longer than `max_length`
    max_length: _Count | None = None
    served_as: str | None = None
    requests: _Count | None = None  # budgets, retries included
    tokens: _Count | None = None


@dataclass(frozen=True, slots=True)
class Addressed:
    """A server, the model's name there, and how to ask it."""

    base_url: str
    model: str
    options: _Options


def read_address(text: str, problems: Problems) -> Addressed | None:
    """Read `api:URL?option=value#MODEL`; what is wrong goes to `problems`."""
    shown, _, model = text.partition("#")
    url, _, query = shown.removeprefix(PREFIX).partition("?")
    if not url.startswith(("http://", "https://")) or not model:
        problems.add(text, "is no model of a server", _FORM)
        return None
    try:
        return Addressed(url, model, _Options.model_validate(dict(parse_qsl(query))))
    except ValidationError as error:
        for item in error.errors(include_url=False):
            name = str(item["loc"][0])
            what = f"{name}: {item['msg'].replace('Input should be', 'must be')}"
            if item["type"] == "extra_forbidden":
                what = f"unknown option '{name}'{did_you_mean(name, _Options.model_fields)}"
            problems.add(printable(url, 200), what, _FORM)
        return None


def api_model_of(asked: Addressed, label: str) -> Model:
    """Give the model; nothing is sent yet.

    Raises
    ------
    InputError, EnvironmentFault
        as `mergepipe.model.api.api_model`.

    """
    from tokenizers import Tokenizer

    from mergepipe.model.api import api_model
    from mergepipe.model.api_limits import Budget

    options, parts = asked.options, urlsplit(asked.base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    folder = options.tokenizer
    return api_model(
        asked.base_url,
        asked.model,
        name=label,
        key_env=options.key_env or _bound_key(asked.base_url),
        kind=options.kind,
        prefix=options.prefix,
        tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")) if folder else None,
        max_length=options.max_length,
        served_as=options.served_as,
        trusted_hosts={f"{(parts.hostname or '').lower()}:{port}"},
        budget=Budget(requests=options.requests, tokens=options.tokens),
    )


def _bound_key(base_url: str) -> str | None:
    """Give OPENAI_API_KEY where it belongs to this host."""
    bound = os.environ.get("OPENAI_BASE_URL", _OPENAI)
    same = urlsplit(bound).netloc == urlsplit(base_url).netloc
    return "OPENAI_API_KEY" if same else None


def check_served(specs: Iterable[ServedSpec], problems: Problems) -> None:
    """Find out before any work whether a recipe's servers may be asked, and given their keys.

    Raises
    ------
    EnvironmentFault
        if the package that asks them is not installed.

    """
    from mergepipe.model.api_address import checked_address, default_url

    for spec in specs:
        fields = spec.fields
        try:
            checked_address(fields.base_url or default_url(fields.key_env), fields.key_env).key()
        except InputError as error:
            for one in error.problems:
                problems.add(spec.place, f"{one.where}: {one.what}", one.fix)
        if find_spec("openai") is None:
            what = "needs the package openai, which is not installed"
            raise EnvironmentFault(Problem(spec.place, what, "pip install 'mergepipe[api]'"))


def served_model(spec: ServedSpec, label: str) -> Model:
    """Give a model of `beside:`; nothing is sent yet.

    Raises
    ------
    InputError, EnvironmentFault
        as `mergepipe.model.api.api_model`.

    """
    from tokenizers import Tokenizer

    from mergepipe.model.api import Budget, Prices, api_model
    from mergepipe.model.api_address import default_url

    fields, folder = spec.fields, spec.tokenizer
    prices, budget = fields.prices, fields.budget
    return api_model(
        fields.base_url or default_url(fields.key_env),
        fields.model,
        name=label,
        key_env=fields.key_env,
        kind=fields.kind,
        prefix=fields.prefix,
        tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")) if folder else None,
        max_length=fields.max_length,
        served_as=fields.served_as,
        prices=None if prices is None else Prices(prices.prompt, prices.generated),
        budget=None if budget is None else Budget(budget.requests, budget.tokens, budget.usd),
    )
