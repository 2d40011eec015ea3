"""Models that only someone else's machine can merge: candidates of a merge service, as `Model`s.

What a candidate is asked, the service asks its model in one go, as a search asks a merge in this
process. So losses are the same to the last bit, on the same kind of machine.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mergepipe.errors import InputError, Problem, Problems, printable
from mergepipe.model import Ability, Generation, Prompt, Score, Usage
from mergepipe.model.api_address import Address, checked_address
from mergepipe.model.api_faults import Failure
from mergepipe.model.api_limits import Limits
from mergepipe.model.api_posts import posted
from mergepipe.recipe import Document

__all__ = [
    "KEY_ENV",
    "RemoteModel",
    "RemotePool",
    "is_remote",
    "local_form",
    "named_models",
    "read_service",
    "remote_candidate",
    "remote_pool",
]

KEY_ENV = "MERGEPIPE_SERVICE_API_KEY"
_FIELDS = ("url", "key_env")
# What a recipe may say of a candidate, beside what is done here: its evaluations, search, output.
_HERE = frozenset({"mergepipe", "service", "evaluate", "search", "output", "publish", "stop"})
_FORGOTTEN = 404
_SERVICE = "service"
T = TypeVar("T")


@dataclass(slots=True)
class RemotePool:
    """A service, and what it says of its pool. Nothing is sent before it is first asked."""

    address: Address
    limits: Limits
    sleep: Callable[[float], None] = time.sleep
    _said: dict[str, Any] | None = None

    @property
    def said(self) -> Mapping[str, Any]:
        """Names and sizes of the models, allowed methods and ranges.

        Raises
        ------
        ApiRefusal, ApiFault
            if the service does not answer.

        """
        if self._said is None:
            self._said = self.asked("/pool", {})
        return self._said

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of all models."""
        return tuple(str(one["name"]) for one in self.said["models"])

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters."""
        return tuple(str(o["name"]) for o in self.said["models"] if o["kind"] == "adapter")

    @property
    def layers(self) -> int | None:
        """How many layers the models have."""
        layers = self.said.get("layers")
        return layers if isinstance(layers, int) else None

    def candidate(
        self,
        merge: Mapping[str, Any],
        *,
        seed: int = 0,
        dtype: str | None = None,
        name: str = "candidate",
    ) -> RemoteModel:
        """Have a merge of the pool's models checked, and give it as a model.

        `merge` is what a recipe says under that name; `dtype` is that of its checkpoint.

        Raises
        ------
        ApiRefusal
            if the service does not allow it.
        ApiFault
            if the service does not answer.

        """
        body = {"merge": dict(merge), "seed": seed, **({"dtype": dtype} if dtype else {})}
        model = RemoteModel(name, self, body)
        model.make()
        return model

    def composed(self, keep: Sequence[float], weights: Sequence[float]) -> RemoteModel:
        """Give a composition of all adapters: see `mergepipe.lora.composing`."""
        models = {
            label: {"density": share, "weight": weight}
            for label, share, weight in zip(self.adapters, keep, weights, strict=True)
        }
        return self.candidate({"method": "lora_composition", "models": models})

    def asked(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Give the answer of a route, tried again where that may help.

        Raises
        ------
        ApiRefusal, ApiFault
            if there is none.

        """
        found = self.tried(route, body)
        if isinstance(found, Failure):
            raise found.error(self.address.base_url)
        return found

    def tried(self, route: str, body: Mapping[str, Any]) -> dict[str, Any] | Failure:
        """Give the answer of a route, or why there is none."""
        said = json.dumps([self.address.base_url, route, body], sort_keys=True)
        tag = hashlib.sha256(said.encode()).hexdigest()[:32]
        return posted(self.address, route, body, tag, _read, limits=self.limits, sleep=self.sleep)


def _read(body: bytes) -> dict[str, Any] | Failure:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        return said
    return Failure("stop", "the answer is no JSON object", "is it a merge service? Check the url")


@dataclass(slots=True)
class RemoteModel:
    """A candidate of a service; a service that has forgotten it is told of it again."""

    name: str
    pool: RemotePool
    made_of: Mapping[str, Any]
    id: str = ""
    fingerprint: str = ""
    usage: Usage = field(default_factory=Usage)

    @property
    def abilities(self) -> frozenset[Ability]:
        """See `Model`."""
        return frozenset({"loglikelihood", "rolling", "generate", "chat"})

    def make(self) -> None:
        """Have the service check and remember it."""
        said = self.pool.asked("/candidates", self.made_of)
        self.id, self.fingerprint = str(said.get("id")), str(said.get("fingerprint"))

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """See `Model`."""
        return self._scores({"pairs": [list(request) for request in requests]}, len(requests))

    def loglikelihood_rolling(
        self, texts: Sequence[str], *, stride: int | None = None
    ) -> list[Score]:
        """See `Model`."""
        return self._scores({"texts": list(texts), "stride": stride}, len(texts))

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        """See `Model`; conversations are asked one by one."""
        if not prompts:
            return []
        asked: dict[str, Any] = {"temperature": temperature, "seed": seed, "max_tokens": max_tokens}
        asked |= {"stop": list(stop)} if stop else {}
        if all(isinstance(prompt, str) for prompt in prompts):
            said = self._ask("/completions", {**asked, "prompt": list(prompts)}, "model")
            return self._written(said, "text", len(prompts))
        found = []
        for prompt in prompts:
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            said = self._ask("/chat/completions", {**asked, "messages": list(turns)}, "model")
            found += self._written(said, "message", 1)
        return found

    def _written(self, said: Mapping[str, Any], key: str, count: int) -> list[Generation]:
        choices = said.get("choices")
        try:
            pairs = [(one[key], one["completion_tokens"]) for one in choices or ()]
            found = [
                Generation(text["content"] if isinstance(text, dict) else text, tokens)
                for text, tokens in pairs
            ]
        except (TypeError, KeyError):
            raise self._broken("holds no texts") from None
        if len(found) != count or not all(isinstance(one.text, str) for one in found):
            raise self._broken("holds other texts than were asked for")
        return found

    def _scores(self, items: Mapping[str, Any], count: int) -> list[Score]:
        if not count:
            return []
        said = self._ask("/loss", items, "candidate")
        scores = said.get("scores")
        try:
            found = [Score(**one) for one in scores or ()]
        except TypeError:
            raise self._broken("holds no scores") from None
        if len(found) != count or not all(one.logprob <= 0 for one in found):
            raise self._broken("holds other scores than were asked for")
        return found

    def _ask(self, route: str, body: Mapping[str, Any], key: str) -> dict[str, Any]:
        began = time.perf_counter()
        found = self.pool.tried(route, {key: self.id, **body})
        if isinstance(found, Failure) and found.status == _FORGOTTEN:
            self.make()
            found = self.pool.tried(route, {key: self.id, **body})
        if isinstance(found, Failure):
            raise found.error(self.pool.address.base_url)
        used = found.get("usage") or {}
        read, new = (int(used.get(f"{kind}_tokens", 0)) for kind in ("prompt", "completion"))
        self.usage += Usage(1, read, new, time.perf_counter() - began)
        return found

    def _broken(self, what: str) -> InputError:
        return InputError(Problem(self.pool.address.base_url, f"its answer {what}"))


def remote_pool(
    url: str,
    *,
    key_env: str | None = KEY_ENV,
    trusted_hosts: Sequence[str] = (),
    limits: Limits | None = None,
) -> RemotePool:
    """Give the pool of the service at `url` (https://HOST/v1).

    Who is given the key, and may be in this network, the operator says, not a recipe: the host of
    MERGEPIPE_SERVICE_BASE_URL, see `mergepipe.model.api_address`.

    Raises
    ------
    InputError
        if the address may not be asked or given the key.

    """
    address = checked_address(url, key_env, trusted_hosts)
    address.key()
    return RemotePool(address, limits or Limits())


def read_service(document: Document, problems: Problems) -> tuple[str, str | None] | None:
    """Give the url and key_env of a recipe's `service:`; None if it has none, or faults.

    A recipe for a service has a `merge`, and neither models nor anything else that the service
    would have to take from it.
    """
    data = document.data
    section = data.get("service") if isinstance(data, dict) else None
    if section is None:
        return None
    where = document.where(("service",))
    if isinstance(section, str):
        section = {"url": section}
    if not isinstance(section, dict) or not isinstance(section.get("url"), str):
        problems.add(where, "must be {url: https://HOST/v1}")
        return None
    for key in section:
        if key not in _FIELDS:
            problems.add(where, f"unknown field '{printable(key, 60)}'; known: url, key_env")
    for key in data:
        if key not in _HERE | {"merge", "seed"}:
            what = f"'{printable(key, 60)}' cannot be said to a service"
            problems.add(document.where((key,)), what, "it has its own models, tokenizer and rules")
    if not isinstance(data.get("merge"), dict):
        problems.add(document.where(()), "a service needs `merge:`")
    key_env = section.get("key_env", KEY_ENV)
    return section["url"], key_env if isinstance(key_env, str) else None


def is_remote(document: Document) -> bool:
    """Tell whether a recipe is for a service."""
    return isinstance(document.data, dict) and _SERVICE in document.data


def local_form(document: Document) -> Document:
    """Give a recipe for a service as one with models, by the names that its merge has."""
    if not is_remote(document):
        return document
    data = {key: value for key, value in document.data.items() if key != _SERVICE}
    models = {
        label: {"path": f"./{_SERVICE}/{label}"} for label in dict.fromkeys(named_models(document))
    }
    return replace(document, data={**data, "models": models})


def named_models(document: Document) -> Iterator[str]:
    """Give the names of models that a recipe's merge has, some of them twice."""
    merge = document.data.get("merge")
    if not isinstance(merge, dict):
        return
    if isinstance(merge.get("base"), str):
        yield merge["base"]
    if isinstance(merge.get("models"), dict | list):
        yield from (label for label in merge["models"] if isinstance(label, str))


def remote_candidate(pool: RemotePool, document: Document) -> RemoteModel:
    """Give the candidate of a recipe whose searched places are filled.

    Raises
    ------
    ApiRefusal, ApiFault
        as `RemotePool.candidate`.

    """
    data = document.data
    output = data.get("output") or {}
    return pool.candidate(data["merge"], seed=data.get("seed", 0), dtype=output.get("dtype"))
