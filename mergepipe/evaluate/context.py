"""What an evaluator is given beside the model: its parameters, and which items are its."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel

from mergepipe.errors import InputError

if TYPE_CHECKING:
    from mergepipe.model.api_exchange import Answers

__all__ = ["PARTS", "Context", "Part", "Split"]

K = TypeVar("K", str, int)
T = TypeVar("T")
U = TypeVar("U")
P_co = TypeVar("P_co", bound=BaseModel, covariant=True)

Part: TypeAlias = Literal["search", "holdout", "final"]
PARTS: tuple[Part, ...] = ("search", "holdout", "final")
_CHUNK = 512  # requests between two reports of progress


@dataclass(frozen=True, slots=True)
class Split:
    """How items are shared out: so many to search on, so many to choose by, the rest to report."""

    search: int
    holdout: int
    seed: int = 0

    def part(self, ids: Sequence[K], part: Part) -> frozenset[K]:
        """Give the ids of a part: by their hashes' order, so that parts share no item.

        Raises
        ------
        InputError
            if there are not enough items for every part.

        """
        least = self.search + self.holdout + 1
        if len(ids) < least:
            what = f"a split of {self.search} and {self.holdout} items, and some left, needs"
            raise InputError(f"{what} {least} or more, but there are {len(ids)}")
        ranked = sorted(ids, key=lambda one: hashlib.sha256(f"{self.seed}:{one}".encode()).digest())
        ends = {"search": (0, self.search), "holdout": (self.search, self.search + self.holdout)}
        first, end = ends.get(part, (self.search + self.holdout, len(ids)))
        return frozenset(ranked[first:end])


@dataclass(frozen=True, slots=True)
class Context(Generic[P_co]):
    """One evaluation, as its evaluator sees it.

    `folder` is what relative paths are relative to; `part` is set where the evaluation has a
    split and only a part of the items is asked for; `progress` is told (done, total). `answers`
    is where servers' answers are kept, if they may be.
    """

    parameters: P_co
    seed: int = 0
    folder: Path = Path()
    limit: int | None = None
    split: Split | None = None
    part: Part | None = None
    progress: Callable[[int, int], None] | None = None
    answers: Answers | None = None

    def choose(self, items: Mapping[K, T]) -> dict[K, T]:
        """Give the items to score, by id: those of the part, and of them the first `limit`.

        Raises
        ------
        InputError
            if the split needs more items than there are.

        """
        if self.split is not None and self.part is not None:
            part = self.split.part(list(items), self.part)
            items = {key: one for key, one in items.items() if key in part}
        return dict(list(items.items())[: self.limit])

    def ask(self, question: Callable[[list[T]], list[U]], requests: Sequence[T]) -> list[U]:
        """Ask a model in chunks, telling the progress: `ask(model.loglikelihood, requests)`."""
        answers: list[U] = []
        for start in range(0, len(requests), _CHUNK):
            answers += question(list(requests[start : start + _CHUNK]))
            if self.progress is not None:
                self.progress(len(answers), len(requests))
        return answers
