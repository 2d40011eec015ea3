"""What a server can do: asked once, with four small requests at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mergepipe.model import Ability
from mergepipe.model.api_answers import Answer, Echo, echoed
from mergepipe.model.api_exchange import Exchange, Job
from mergepipe.model.api_faults import Failure

__all__ = ["Probe", "echo_body", "probe"]

_TEXT = "One, two, three"
_TOKENS = 64  # more than any tokenizer makes of it, a chat template included
# Not `created` or `permission`: some servers give them anew each time.
_LISTED = ("id", "root", "parent", "owned_by", "revision", "fingerprint", "meta")


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found out; `unscored` says why texts cannot be scored, if they cannot.

    `bos` is the text of the token that the server itself puts before a prompt, which moves the
    offsets of the others by `shift` characters.
    """

    abilities: frozenset[Ability]
    unscored: str = ""
    bos: str = ""
    shift: int = 0
    said: Mapping[str, Any] = field(default_factory=dict)


def echo_body(model: str, prompt: str | list[int]) -> dict[str, Any]:
    """Ask for the log-probabilities of a prompt: one new token, as some servers refuse none."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 1,
        "echo": True,
    }


def probe(exchange: Exchange, kind: Literal["completions", "chat"], prefix: str) -> Probe:
    """Find out what the server can do.

    Raises
    ------
    ApiFault, ApiRefusal
        if it does not do the `kind` of thing it is there for, or does not answer.

    """
    abilities: set[Ability] = {"generate"}
    said: dict[str, Any] = {}
    found = Probe(frozenset(), "a chat server scores no texts")
    if kind == "completions":
        found, said = _echo(exchange, prefix)
        abilities |= set() if found.unscored else {"loglikelihood", "rolling"}
    said["listed"] = _listed(exchange)
    chat, answer = _chat(exchange, optional=kind != "chat")
    abilities |= {"chat"} if chat else set()
    said |= {"system_fingerprint": answer.get("system_fingerprint")} if chat else {}
    return Probe(frozenset(abilities), found.unscored, found.bos, found.shift, said)


def _chat(exchange: Exchange, *, optional: bool) -> tuple[bool, dict[str, Any]]:
    body = {"model": exchange.model, "messages": [{"role": "user", "content": _TEXT}]}
    job = Job("chat", {**body, "max_tokens": 1}, _TOKENS, 1, _whole, optional=optional)
    (answer,), failure = exchange.ask([job])
    lacking = optional and failure is not None and failure.status in {400, 404, 405, 422, 500, 501}
    if failure and not lacking:
        raise failure.error(exchange.address.base_url)
    return answer is not None, answer.said if answer else {}


def _listed(exchange: Exchange) -> dict[str, Any]:
    """What GET /models says of this model; nothing where the server has no such list."""
    (answer,), failure = exchange.ask([Job("models", {}, 0, 0, _whole, optional=True)])
    if failure and failure.remedy in {"refused", "budget"} and failure.status != 404:  # noqa: PLR2004
        raise failure.error(exchange.address.base_url)
    entries = answer.said["data"] if answer else []
    mine = [
        entry for entry in entries if isinstance(entry, dict) and entry.get("id") == exchange.model
    ]
    return {key: entry[key] for entry in mine[:1] for key in _LISTED if key in entry}


def _whole(answer: Answer) -> Answer | Failure:
    return answer


def _echo(exchange: Exchange, prefix: str) -> tuple[Probe, dict[str, Any]]:
    body = echo_body(exchange.model, prefix + _TEXT)
    job = Job("completions", body, _TOKENS + len(prefix), 1, _whole)
    (answer,), failure = exchange.ask([job])
    if answer is None:
        if failure and failure.remedy != "request":
            raise failure.error(exchange.address.base_url)
        why = f"the server refuses echo with logprobs: {failure.what if failure else ''}"
        return Probe(frozenset(), why), {}
    said = {"system_fingerprint": answer.said.get("system_fingerprint")}
    echo = echoed(answer)
    if isinstance(echo, Failure):
        return Probe(frozenset(), "the server gives no log-probabilities of a prompt"), said
    return _prefixed(echo, prefix), said


def _prefixed(echo: Echo, prefix: str) -> Probe:
    """Tell whether the first token of a text is scored: after a prefix of ours or of the server."""
    text = prefix + _TEXT
    theirs = not text.startswith(echo.first)
    shift = echo.end - len(text) if theirs and echo.end is not None else 0
    bos = echo.first if theirs else ""
    if prefix and bos:
        return Probe(frozenset(), f"the server puts its own '{bos}' before the prefix: pass none")
    if not prefix and not bos:
        return Probe(
            frozenset(), "the server puts no BOS before a text: pass prefix='<|endoftext|>'"
        )
    if prefix and echo.token_at(len(prefix)) != 1:
        return Probe(frozenset(), f"the prefix '{prefix}' is not one token of the server's")
    return Probe(frozenset(), "", bos, shift)
