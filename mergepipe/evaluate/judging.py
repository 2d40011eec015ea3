"""Models that judge answers: behind a server, asked at temperature 0, their faults kept apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, PositiveInt

from mergepipe.errors import MergepipeError, printable

if TYPE_CHECKING:
    from mergepipe.model import Generation
    from mergepipe.model.api import ApiModel
    from mergepipe.model.api_exchange import Answers

__all__ = ["Judge", "NoVerdict", "ask_judge", "last_line_verdict", "open_judge"]

_SHOWN = 100  # characters of a reply without a verdict


class Rates(BaseModel, frozen=True, extra="forbid", strict=True):
    """US dollars for a million tokens."""

    prompt: Annotated[float, Field(ge=0)]
    generated: Annotated[float, Field(ge=0)]


class Judge(BaseModel, frozen=True, extra="forbid", strict=True):
    """A judge: the server's name of the model, where it is, and what variable holds its key.

    Without `base_url` it is where OPENAI_BASE_URL points (of X_API_KEY, X_BASE_URL), or
    api.openai.com. Which addresses and keys are allowed is the environment's to say, not the
    recipe's.
    """

    model: str
    base_url: str | None = None
    key_env: str | None = "OPENAI_API_KEY"
    kind: Literal["chat", "completions"] = "chat"
    max_tokens: PositiveInt = 1024
    prices: Rates | None = None


@dataclass(frozen=True, slots=True)
class NoVerdict:
    """Why there is none."""

    reason: str


def open_judge(judge: Judge, answers: Answers | None = None) -> ApiModel:
    """Give the model to ask; nothing is sent yet. What `answers` has is not paid for again.

    Raises
    ------
    InputError
        if the address may not be asked, or not be given the key.
    EnvironmentFault
        if the `openai` package is not installed.

    """
    from mergepipe.model.api import Prices, api_model
    from mergepipe.model.api_address import default_url

    base_url = judge.base_url or default_url(judge.key_env)
    rates = judge.prices
    prices = None if rates is None else Prices(rates.prompt, rates.generated)
    model = api_model(base_url, judge.model, key_env=judge.key_env, kind=judge.kind, prices=prices)
    model.keep(answers, scope=f"judge {judge.kind}")
    return model


def ask_judge(
    model: ApiModel,
    questions: Sequence[str],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Generation | NoVerdict]:
    """Give a reply to every question; where there is none, why.

    Raises
    ------
    InputError, EnvironmentFault
        if not half of them can be answered: the key is refused, the server is down.

    """
    from mergepipe.model.api_faults import ApiFault, ApiRefusal

    def ask(some: Sequence[str]) -> list[Generation]:
        return model.generate(
            some, stop=(), max_tokens=max_tokens, temperature=temperature, seed=seed
        )

    try:
        return [*ask(questions)]
    except ApiFault as fault:
        if 2 * sum(one is not None for one in fault.answers) < len(questions):
            raise
        why = NoVerdict(_reason(fault))
        return [one or why for one in _generations(fault.answers)]
    except ApiRefusal as refusal:  # of one request, maybe: what it kept from being asked is asked
        if len(questions) == 1:
            raise
        answers = _generations(refusal.answers)
        found = [
            one or _asked_alone(ask, question)
            for one, question in zip(answers, questions, strict=True)
        ]
        if all(isinstance(one, NoVerdict) for one in found):
            raise
        return found


def _generations(answers: Sequence[object]) -> list[Generation | None]:
    from mergepipe.model import Generation

    return [one if isinstance(one, Generation) else None for one in answers]


def _asked_alone(
    ask: Callable[[Sequence[str]], list[Generation]], question: str
) -> Generation | NoVerdict:
    try:
        (found,) = ask([question])
    except MergepipeError as error:
        return NoVerdict(_reason(error))
    return found


def _reason(error: MergepipeError) -> str:
    return f"the judge gave no answer: {printable(error, 200)}"


def last_line_verdict(reply: str, word: str, verdicts: str) -> str | NoVerdict:
    r"""Give what stands behind `word` in the last line that is not blank.

    `verdicts` is a regular expression with one group; marks around a verdict do not matter.

    >>> last_line_verdict("Well said.\n**GRADE: C**", "GRADE", "([CPI])")
    'C'
    """
    lines = reply.strip().splitlines() or [""]
    pattern = rf"\W*{word}\W*:\W*{verdicts}\W*"
    match = re.fullmatch(pattern, lines[-1], re.IGNORECASE)
    if match is None:
        return NoVerdict(f"the judge's reply ends without {word}: {printable(lines[-1], _SHOWN)}")
    return match[1].upper()
