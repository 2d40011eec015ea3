"""A model behind an OpenAI-compatible server: completions, chat, and the scores of echoed prompts.

Texts are scored through /completions with `echo` and `logprobs`, where the server has them. Where
a continuation starts is read from the server's `text_offset`, so its tokenizer need not be known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mergepipe.errors import InputError, Problem
from mergepipe.model import Ability, Generation, Prompt, Score, Usage
from mergepipe.model.api_address import checked_address
from mergepipe.model.api_answers import Answer, Echo, echoed, written
from mergepipe.model.api_exchange import Answers, Exchange, Job, Kept
from mergepipe.model.api_faults import Failure
from mergepipe.model.api_limits import Budget, Limits, Prices
from mergepipe.model.api_probe import Probe, echo_body, probe
from mergepipe.model.api_scores import filled, scored_from, summed, tokens_from
from mergepipe.model.traces import TokenScores, Trace, joined
from mergepipe.model.windows import spans

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ApiModel", "Budget", "Limits", "Prices", "api_model"]

T = TypeVar("T")

_STOPS = 4  # what the API takes; more are cut here
_MESSAGE_TOKENS = 16  # what a chat template may put around a message
_SPARE_TOKENS = 64


def api_model(
    base_url: str,
    model: str,
    *,
    name: str | None = None,
    key_env: str | None = "OPENAI_API_KEY",
    kind: Literal["completions", "chat"] = "completions",
    prefix: str = "",
    tokenizer: Tokenizer | None = None,
    max_length: int | None = None,
    served_as: str | None = None,
    trusted_hosts: Collection[str] = (),
    limits: Limits | None = None,
    prices: Prices | None = None,
    budget: Budget | None = None,
) -> ApiModel:
    """Give the model that the server at `base_url` calls `model`; nothing is sent yet.

    `prefix` is the text of the token that starts every sequence, for servers that put no BOS there
    themselves. Texts of more than `max_length` tokens are scored in windows of so many; that takes
    the model's own `tokenizer`, and a server that takes two tokens more. `served_as` is the name
    that the server answers under, `trusted_hosts` (HOST:PORT) may be given the key and be in this
    network.

    Raises
    ------
    InputError
        if the address may not be asked or given the key, or a budget in USD has no prices.
    EnvironmentFault
        if the `openai` package is not installed.

    """
    limits = limits or Limits()
    if budget and budget.usd is not None and prices is None:
        raise InputError(Problem(model, "a budget in USD needs prices", "pass prices"))
    address = checked_address(base_url, key_env, trusted_hosts)
    address.key()  # that it is there
    exchange = Exchange(address, model, served_as, limits, prices, budget)
    return ApiModel(name or model, kind, exchange, prefix, tokenizer, max_length)


@dataclass(slots=True)
class ApiModel:
    """See `api_model`. An error holds what was answered before it, as its `answers`.

    Raises ApiRefusal where the server refuses the request, the key or the model; BudgetExhausted
    before a request that might go over the budget; ApiFault where there is no usable answer.
    """

    name: str
    kind: Literal["completions", "chat"]
    exchange: Exchange
    prefix: str = ""
    tokenizer: Tokenizer | None = None
    max_length: int | None = None
    _probed: Probe | None = None
    _new_tokens_name: str = "max_tokens"

    @property
    def fingerprint(self) -> str:
        """See `Model`; asks the server what it is, the first time."""
        exchange = self.exchange
        names = (exchange.address.base_url, exchange.model, exchange.served_as)
        said = json.dumps([*names, self.kind, self.prefix, self.max_length, self._server().said])
        return hashlib.sha256(said.encode()).hexdigest()

    @property
    def abilities(self) -> frozenset[Ability]:
        """See `Model`; asks the server what it can do, the first time."""
        return self._server().abilities

    @property
    def usage(self) -> Usage:
        """See `Model`; a request is one sent, also in vain."""
        return self.exchange.usage

    @property
    def location(self) -> Mapping[str, str]:
        """See `mergepipe.evaluate.Located`; of the key, the name of its variable alone."""
        address = self.exchange.address
        found = {"base_url": address.base_url, "model": self.exchange.model, "kind": self.kind}
        return found | ({} if address.key_env is None else {"key_env": address.key_env})

    def keep(self, answers: Answers | None, *, scope: str) -> None:
        """From now on pay for no answer twice: see `Kept`; with None, for each again."""
        self.exchange.kept = None if answers is None else Kept(answers, scope)

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """See `Model`; a token that goes over the end of the context is scored."""
        self._check_scores()
        stripped = [context.rstrip(" ") for context, _ in requests]
        texts = [context + continuation for context, continuation in requests]
        jobs = [
            self._score_job(text, len(context))
            for context, text in zip(stripped, texts, strict=True)
            if len(text) > len(context)
        ]
        empty = [len(text) == len(context) for context, text in zip(stripped, texts, strict=True)]
        return self._all(jobs, lambda found: filled(found, empty))

    def loglikelihood_rolling(
        self, texts: Sequence[str], *, stride: int | None = None
    ) -> list[Score]:
        """See `Model`; texts too long for the server need a tokenizer, see `api_model`."""
        self._check_scores()
        jobs: list[Job[Score]] = []
        counts: list[int] = []
        for text in texts:
            added = list(self._text_jobs(text, stride))
            jobs += added
            counts.append(len(added))
        return self._all(jobs, lambda found: summed(found, counts, texts))

    def trace(self, requests: Sequence[tuple[str, str]]) -> list[Trace]:
        """See `Traceable`; one request for each, its context included."""
        self._check_scores()
        starts = [len(context.rstrip(" ")) for context, _ in requests]
        texts = [context + continuation for context, continuation in requests]
        jobs = [self._trace_job(*one) for one in zip(texts, starts, strict=True) if one[0]]
        nothing = Trace((), (), (), 0, 0)

        def put(found: list[Trace | None]) -> list[Trace | None]:
            traces = iter(found)
            return [next(traces) if text else nothing for text in texts]

        return self._all(jobs, put)

    def trace_texts(self, texts: Sequence[str], *, stride: int | None = None) -> list[Trace]:
        """See `Traceable`; texts too long for the server need a tokenizer, see `api_model`."""
        short = [text for text in texts if not self._windows(text, stride)]
        traces = iter(self.trace([("", text) for text in short]))
        return [
            self._long_trace(text, windows)
            if (windows := self._windows(text, stride))
            else next(traces)
            for text in texts
        ]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        """See `Model`; how far draws depend on the seed is up to the server."""
        settings: dict[str, Any] = {"temperature": temperature, "seed": seed}
        if stop:
            settings["stop"] = list(stop[:_STOPS])

        def jobs() -> list[Job[Generation]]:
            return [self._generate_job(p, stop, max_tokens, settings) for p in prompts]

        found, failure = self.exchange.ask(jobs())
        renamed = "max_completion_tokens"
        if failure and failure.remedy == "request" and renamed in failure.what:
            self._new_tokens_name = renamed
            found, failure = self.exchange.ask(jobs())
        return self._answers(found, failure)

    def _server(self) -> Probe:
        if self._probed is None:
            self._probed = probe(self.exchange, self.kind, self.prefix)
        return self._probed

    def _check_scores(self) -> None:
        if why := self._server().unscored:
            raise InputError(Problem(self.name, f"cannot score texts: {why}"))

    def _generate_job(
        self, prompt: Prompt, stop: Sequence[str], max_tokens: int, settings: dict[str, Any]
    ) -> Job[Generation]:
        chat = self.kind == "chat" or not isinstance(prompt, str)
        body: dict[str, Any] = {"model": self.exchange.model, **settings}
        if chat:
            said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            body |= {"messages": list(said), self._new_tokens_name: max_tokens}
            sizes = [self._most_tokens(m["content"]) + _MESSAGE_TOKENS for m in said]
            size = sum(sizes) + _SPARE_TOKENS
        else:
            body |= {"prompt": f"{self.prefix}{prompt}", "max_tokens": max_tokens}
            size = self._most_tokens(body["prompt"])

        def read(answer: Answer) -> Generation | Failure:
            text = written(answer, chat=chat)
            if isinstance(text, Failure):
                return text
            cuts = [text.find(mark) for mark in stop if mark in text]
            tokens = max_tokens if answer.generated_tokens is None else answer.generated_tokens
            return Generation(text[: min(cuts, default=len(text))], tokens)

        return Job("chat" if chat else "completions", body, size, max_tokens, read)

    def _score_job(self, text: str, start: int) -> Job[Score]:
        def read(answer: Answer) -> Score | Failure:
            echo = self._echo(answer, text)
            if isinstance(echo, Failure):
                return echo
            size = len(text[start:].encode())
            return scored_from(echo, echo.token_at(self._place(start)), size)

        prompt = self.prefix + text
        return self._echo_job(prompt, self._most_tokens(prompt), read)

    def _trace_job(self, text: str, start: int) -> Job[Trace]:
        def read(answer: Answer) -> Trace | Failure:
            echo = self._echo(answer, text)
            if isinstance(echo, Failure):
                return echo
            first, at = echo.token_at(self._place(0)), echo.token_at(self._place(start))
            found = tokens_from(echo, first)
            if isinstance(found, Failure):
                return found
            starts = [max(0, one - self._place(0)) for one in echo.starts[first:]]
            return joined(starts, [found], at - first, text)

        prompt = self.prefix + text
        return self._echo_job(prompt, self._most_tokens(prompt), read)

    def _echo(self, answer: Answer, text: str) -> Echo | Failure:
        """Read an echo, if its tokens are those of the text."""
        echo = echoed(answer)
        if isinstance(echo, Failure) or echo.end in {None, self._place(len(text))}:
            return echo
        what = f"the prompt has {self._place(len(text))} characters, but its tokens {echo.end}"
        return Failure("stop", what, "does the server cut or change it, or count bytes?")

    def _place(self, character: int) -> int:
        """Give where a character of the text stands in what the server echoes."""
        return len(self.prefix) + self._server().shift + character

    def _text_jobs(self, text: str, stride: int | None) -> Iterator[Job[Score]]:
        windows = self._windows(text, stride)
        if not windows and text:
            yield self._score_job(text, 0)
        for window in windows:
            yield self._window_job(*window, lambda echo, at: scored_from(echo, at, 0))

    def _windows(self, text: str, stride: int | None) -> list[tuple[list[int], int]]:
        """Give the ids of each window and how many are scored; none if the text is short enough."""
        limit, ids = self.max_length, self._encode(text)
        if limit is None or ids is None or len(ids) <= limit:
            return []
        assert self.tokenizer is not None
        bos = self.tokenizer.token_to_id(self.prefix or self._server().bos)
        if bos is None:
            what = "its tokenizer has no such token as the prefix that the server puts before texts"
            raise InputError(Problem(self.name, what, "pass prefix"))
        led = [bos, *ids]
        cuts = spans(len(ids), limit, stride)
        return [(led[begin : end + 1], end - start) for begin, start, end in cuts]

    def _long_trace(self, text: str, windows: Sequence[tuple[list[int], int]]) -> Trace:
        """Trace a text in windows; where its tokens start, its tokenizer says."""
        assert self.tokenizer is not None
        jobs = [self._window_job(*window, tokens_from) for window in windows]
        starts = self.tokenizer.encode(text, add_special_tokens=False).offsets
        parts: list[TokenScores] = self._all(jobs, lambda found: found)
        return joined([start for start, _ in starts], parts, 0, text)

    def _window_job(
        self, window: list[int], scored: int, made: Callable[[Echo, int], T | Failure]
    ) -> Job[T]:
        def read(answer: Answer) -> T | Failure:
            echo = echoed(answer)
            if isinstance(echo, Failure):
                return echo
            if len(echo.starts) != len(window):
                what = f"{len(window)} token ids were sent, but {len(echo.starts)} are echoed"
                return Failure("stop", what, "does the server take prompts of token ids?")
            return made(echo, len(window) - scored)

        return self._echo_job(window, len(window), read)

    def _echo_job(
        self, prompt: str | list[int], tokens: int, read: Callable[[Answer], T | Failure]
    ) -> Job[T]:
        return Job("completions", echo_body(self.exchange.model, prompt), tokens, 1, read)

    def _encode(self, text: str) -> list[int] | None:
        if self.tokenizer is None:
            return None
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _most_tokens(self, text: str) -> int:
        """How many tokens a text is at most: a token is at least a byte."""
        ids = self._encode(text)
        return (len(text.encode()) if ids is None else len(ids)) + 2

    def _all(
        self, jobs: Sequence[Job[T]], put: Callable[[list[T | None]], list[T | None]]
    ) -> list[T]:
        found, failure = self.exchange.ask(jobs)
        if failure and failure.remedy == "request":
            fix = "is a text too long for the server? tokenizer and max_length score it in windows"
            failure = replace(failure, fix=fix)
        return self._answers(put(found), failure)

    def _answers(self, found: Sequence[T | None], failure: Failure | None) -> list[T]:
        if failure:
            answers: Any = tuple(found)
            where = f"{self.exchange.address.base_url} (model {self.exchange.model})"
            raise failure.error(where, answers)
        return [answer for answer in found if answer is not None]
