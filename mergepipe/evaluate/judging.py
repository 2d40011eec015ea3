"""Models that judge answers: behind a server, asked at temperature 0, their faults kept apart."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, PositiveInt

from mergepipe.errors import MergepipeError, printable

if TYPE_CHECKING:
    from mergepipe.model import Generation
    from mergepipe.model.api import ApiModel

__all__ = ["Judge", "NoVerdict", "ask_judge", "last_line_verdict", "open_judge"]

_OPENAI = "https://api.openai.com/v1"
_SHOWN = 100  # characters of a reply without a verdict


class Judge(BaseModel, frozen=True, extra="forbid", strict=True):
    """A judge: the server's name of the model, where it is, and what variable holds its key.

    Without `base_url` it is where OPENAI_BASE_URL points, or api.openai.com. Which addresses and
    keys are allowed is the environment's to say, not the recipe's.
    """

    model: str
    base_url: str | None = None
    key_env: str | None = "OPENAI_API_KEY"
    kind: Literal["chat", "completions"] = "chat"
    max_tokens: PositiveInt = 1024


@dataclass(frozen=True, slots=True)
class NoVerdict:
    """Why there is none."""

    reason: str


def open_judge(judge: Judge) -> ApiModel:
    """Give the model to ask; nothing is sent yet.

    Raises
    ------
    InputError
        if the address may not be asked, or not be given the key.
    EnvironmentFault
        if the `openai` package is not installed.

    """
    from mergepipe.model.api import api_model

    base_url = judge.base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI
    return api_model(base_url, judge.model, key_env=judge.key_env, kind=judge.kind)


def ask_judge(
    model: ApiModel, questions: Sequence[str], max_tokens: int
) -> list[Generation | NoVerdict]:
    """Give a reply to every question; where there is none, why.

    Raises
    ------
    InputError, EnvironmentFault
        if not half of them can be answered: the key is refused, the server is down.

    """
    from mergepipe.model.api_faults import ApiFault, ApiRefusal

    try:
        return [*model.generate(questions, stop=(), max_tokens=max_tokens)]
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
            one or _asked_alone(model, question, max_tokens)
            for one, question in zip(answers, questions, strict=True)
        ]
        if all(isinstance(one, NoVerdict) for one in found):
            raise
        return found


def _generations(answers: Sequence[object]) -> list[Generation | None]:
    from mergepipe.model import Generation

    return [one if isinstance(one, Generation) else None for one in answers]


def _asked_alone(model: ApiModel, question: str, max_tokens: int) -> Generation | NoVerdict:
    try:
        (found,) = model.generate([question], stop=(), max_tokens=max_tokens)
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
