"""What can go wrong with a model behind an API.

    MergepipeError
    ├── InputError
    │   └── ApiRefusal          the request or the key was refused: 400, 401, 403, 404, 422
    └── EnvironmentFault
        └── ApiFault            no usable answer: down, cut, garbage, waits for too long
            └── BudgetExhausted the next request might go over the budget

Each holds `answers`: what was answered before, None where nothing was. A `Failure` is the same as
a value: what was raised below is dropped with its frames, for they hold the request and its key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from mergepipe.errors import EnvironmentFault, InputError, Problem
from mergepipe.model import Generation, Score
from mergepipe.model.traces import Trace

__all__ = ["Answers", "ApiFault", "ApiRefusal", "BudgetExhausted", "Failure", "Remedy"]

Answers: TypeAlias = "tuple[Score | Generation | Trace | None, ...]"

# What to do about it: try again; try again once; give this item up; give all of them up; have the
# request mended; have the key, model or address mended (and never ask again); spend no more.
Remedy: TypeAlias = Literal["retry", "once", "item", "stop", "request", "refused", "budget"]


class ApiFault(EnvironmentFault):
    """The server gave no usable answer; `answers` holds what it answered before."""

    answers: Answers = ()


class BudgetExhausted(ApiFault):
    """The next request might have gone over the budget, so it was not sent."""


class ApiRefusal(InputError):
    """The server refuses the request or the key; asking again would change nothing."""

    answers: Answers = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no usable answer; `wait` is how many seconds the server asks for."""

    remedy: Remedy
    what: str
    fix: str = ""
    status: int | None = None
    wait: float | None = None

    def error(self, where: str, answers: Answers = ()) -> ApiFault | ApiRefusal:
        """Give the exception for it."""
        kinds: dict[Remedy, type[ApiFault | ApiRefusal]] = {
            "request": ApiRefusal,
            "refused": ApiRefusal,
            "budget": BudgetExhausted,
        }
        done = sum(answer is not None for answer in answers)
        kept = f"; {done} of {len(answers)} were answered" if done else ""
        error = kinds.get(self.remedy, ApiFault)(Problem(where, self.what + kept, self.fix))
        error.answers = answers
        return error
