"""What can go wrong, and what the user is told about it.

    MergepipeError              exit status
    ├── InputError              2   the recipe, an option or an input is wrong
    │   └── NonFiniteError      2   a tensor holds NaN or infinity (found while streaming)
    ├── EnvironmentFault        3   disk, memory, permission, network
    └── DifferenceError         4   `verify` or `reproduce` found a difference

Anything else that escapes is a bug of ours: exit status 1, with a traceback.

Checks do not stop at the first fault. They add `Problem`s to a `Problems` list, and the list
is raised as one `InputError` when all that can be checked has been.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = [
    "DifferenceError",
    "EnvironmentFault",
    "InputError",
    "MergepipeError",
    "NonFiniteError",
    "Problem",
    "Problems",
    "did_you_mean",
    "has_secret",
    "printable",
]

# Shapes of credentials that must never be echoed: hub, OpenAI-style, GitHub, AWS, Slack.
_SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|AKIA[A-Z0-9]{12,}|xox[abprs]-[A-Za-z0-9-]{10,})"
)
_HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def has_secret(text: str) -> bool:
    """Tell whether something in `text` has the shape of a credential."""
    return _SECRET.search(text) is not None


def printable(text: object, limit: int = 2000) -> str:
    """`text` made safe for a terminal or log: controls escaped, credentials masked, cut at `limit`.

    Escapes C0/C1 controls, bidirectional overrides and line separators; keeps accents, CJK, emoji.
    """
    shown = _SECRET.sub("[secret]", str(text))
    shown = "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _HIDDEN_CATEGORIES and char != "\u200d"
        else char
        for char in shown
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'density'?`, or the known names when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: where it is (file, line, tensor or field), what it is, what to do about it."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        what = printable(self.what, 1000)
        line = f"{printable(self.where, 500)}: {what}" if self.where else what
        return printable(f"{line} ({self.fix})" if self.fix else line)


class MergepipeError(Exception):
    """The root of all errors that are not bugs; `str(error)` is what the user reads."""

    exit_status = 1

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(
            p if isinstance(p, Problem) else Problem(where="", what=p) for p in problems
        )
        super().__init__("\n".join(str(p) for p in self.problems))


class InputError(MergepipeError):
    """The recipe, an option or an input is wrong."""

    exit_status = 2


class NonFiniteError(InputError):
    """A tensor holds NaN or infinity, or overflows the output dtype."""


class EnvironmentFault(MergepipeError):
    """Disk, memory, permission or network."""

    exit_status = 3


class DifferenceError(MergepipeError):
    """A checkpoint is not what its manifest says."""

    exit_status = 4


@dataclass(slots=True)
class Problems:
    """Faults and warnings found so far; `raise_any` ends a stage that found faults."""

    found: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, where: object, what: str, fix: str = "") -> None:
        """Record a fault."""
        problem = Problem(str(where), what, fix)
        if problem not in self.found:
            self.found.append(problem)

    def warn(self, where: object, what: str) -> None:
        """Record something the user should know that does not stop the merge."""
        line = printable(f"{where}: {what}")
        if line not in self.warnings:
            self.warnings.append(line)

    def raise_any(self) -> None:
        """Raise all faults as one `InputError`.

        Raises
        ------
        InputError
            if any fault was recorded.

        """
        if self.found:
            raise InputError(*self.found)
