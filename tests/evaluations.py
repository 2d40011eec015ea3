"""Models and evaluators that count what they are asked, for tests of the cache and of failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from mergepipe.evaluate import Evaluation, Evaluator, Item, Result, find_evaluator, mean
from mergepipe.model import Score, Usage


@dataclass
class Counting:
    """A model of texts that says how often it was asked."""

    name: str = "model"
    fingerprint: str = "f"
    abilities: frozenset = frozenset({"rolling"})
    usage: Usage = field(default_factory=Usage)
    asked: int = 0

    def loglikelihood_rolling(self, texts, *, stride=None):  # noqa: ARG002
        self.asked += 1
        return [Score(-len(text) - 0.1, 1, len(text.encode()), greedy=True) for text in texts]


class Anything(BaseModel, frozen=True, extra="forbid", strict=True):
    """No parameter is needed."""

    value: object = None


def judged_by(evaluate, parameters=None, **settings):
    """An evaluation by a function of (model, context)."""
    fields = {key: settings.pop(key) for key in ("needs", "permission") if key in settings}
    evaluator = Evaluator("judge", "Judges.", Anything, evaluate, digest="d", **fields)
    return Evaluation("judged", evaluator, parameters or Anything(), **settings)


def right(*values):
    """A result of items that are right or wrong."""
    items = tuple(Item(str(i), {"right": float(value)}) for i, value in enumerate(values))
    return Result({"right": mean(items, "right", unit="correct")}, items)


def bits(data: Path, **settings):
    """An evaluation by bits_per_byte."""
    evaluator = find_evaluator("bits_per_byte")
    return Evaluation("bits", evaluator, evaluator.parameters(data=data), data.parent, **settings)
