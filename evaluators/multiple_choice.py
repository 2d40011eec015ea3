"""Share of questions whose right choice the model finds likeliest, higher is better.

Each choice c is scored as the continuation of its question by ln p(c | question); the likeliest is
the model's answer, the first one of equals. From the same scores:

    acc              argmax_c ln p(c | q)
    acc_norm         argmax_c ln p(c | q) / characters(c)
    acc_bytes        argmax_c ln p(c | q) / bytes(c)
    acc_mutual_info  argmax_c ln p(c | q) − ln p(c | nothing)        (with `mutual_info: true`)
    gold_probability exp(ln p(gold)) / Σ_c exp(ln p(c))
    brier            Σ_c (p(c) − [c is gold])²                       lower is better

as lm-evaluation-harness has them (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness).
Between models with different tokenizers compare `acc_norm` or `acc_bytes`. `gold_probability` is
less coarse than right or wrong: searches do well to use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, NonNegativeInt, model_validator

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate import (
    Context,
    DataFile,
    Item,
    Metric,
    Result,
    lossy_items,
    mean,
    read_jsonl,
)
from mergepipe.model import Ability, Model

NEEDS: frozenset[Ability] = frozenset({"loglikelihood"})

_FEWEST = 2  # choices
_SHOWN = 10  # faults

Main: TypeAlias = Literal[
    "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "gold_probability", "brier"
]


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`data` holds a `question`, its `choices` and the `answer` a line.

    The answer is the number of a choice from 0 on, its text, or a list of such; several are right.
    `delimiter` stands between question and choice. The first `shots` of `examples`, with their
    answers, come before each question. `main` is the metric of tables and searches.
    """

    data: DataFile
    main: Main = "acc"
    delimiter: str = " "
    mutual_info: bool = False
    examples: DataFile | None = None
    shots: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_consistent(self) -> Parameters:
        if self.shots and self.examples is None:
            raise ValueError("`shots` are taken from `examples`: name a file")
        if self.main == "acc_mutual_info" and not self.mutual_info:
            raise ValueError("`main: acc_mutual_info` needs `mutual_info: true`")
        read_questions(self.data)
        if self.examples is not None and len(read_questions(self.examples)) < self.shots:
            raise ValueError(f"{self.examples} has fewer than {self.shots} examples")
        return self


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its choices, and which of them are right."""

    text: str
    choices: tuple[str, ...]
    gold: frozenset[int]


def read_questions(file: DataFile) -> dict[str, Question]:
    """Read the questions by line number."""
    records = read_jsonl(file, {"question": str, "choices": list, "answer": object})
    faults = {line: fault for line, record in records.items() if (fault := _fault(record))}
    if faults:
        shown = list(faults.items())[:_SHOWN]
        raise InputError(*(Problem(f"{file}:{line}", fault) for line, fault in shown))
    return {
        str(line): Question(record["question"], tuple(record["choices"]), _gold(record))
        for line, record in records.items()
    }


def _fault(record: dict[str, Any]) -> str | None:
    choices = record["choices"]
    if len(choices) < _FEWEST or not all(isinstance(one, str) and one for one in choices):
        return "`choices` must be two texts or more"
    gold = _gold(record)
    if not gold or any(type(n) is not int or not 0 <= n < len(choices) for n in gold):
        return f"`answer` must be a choice, or its number from 0 to {len(choices) - 1}"
    return None


def _gold(record: dict[str, Any]) -> frozenset[int]:
    answers = record["answer"] if isinstance(record["answer"], list) else [record["answer"]]
    choices = record["choices"]
    return frozenset(choices.index(one) if one in choices else one for one in answers)


def evaluate(model: Model, context: Context[Parameters]) -> Result:
    """Score every choice of every question; items are the lines."""
    parameters = context.parameters
    questions = context.choose(read_questions(parameters.data))
    shots = _shots(parameters)
    pairs = [
        (shots + one.text, parameters.delimiter + choice)
        for one in questions.values()
        for choice in one.choices
    ]
    alone = [("", said) for _, said in pairs] if parameters.mutual_info else []
    scores = [score.logprob for score in context.ask(model.loglikelihood, [*pairs, *alone])]
    given, free = scores[: len(pairs)], scores[len(pairs) :]
    items, at = [], 0
    for line, one in questions.items():
        run = slice(at, at + len(one.choices))
        items.append(Item(line, _values(one, given[run], free[run])))
        at = run.stop
    asked = {line: "\n".join((one.text, *one.choices)) for line, one in questions.items()}
    lossy = lossy_items(model, asked)
    return Result(_metrics(items, parameters.main), tuple(items), lossy=lossy)


def _shots(parameters: Parameters) -> str:
    if parameters.examples is None:
        return ""
    shown = list(read_questions(parameters.examples).values())[: parameters.shots]
    return "".join(
        f"{one.text}{parameters.delimiter}{one.choices[min(one.gold)]}\n\n" for one in shown
    )


def _values(one: Question, given: Sequence[float], free: Sequence[float]) -> dict[str, float]:
    """Judge the scores of one question's choices."""
    ranked = {
        "acc": list(given),
        "acc_norm": [s / len(c) for s, c in zip(given, one.choices, strict=True)],
        "acc_bytes": [s / len(c.encode()) for s, c in zip(given, one.choices, strict=True)],
    }
    if free:
        ranked["acc_mutual_info"] = [a - b for a, b in zip(given, free, strict=True)]
    top = max(given)
    weights = [math.exp(score - top) for score in given]
    shares = [weight / math.fsum(weights) for weight in weights]
    brier = math.fsum((p - (n in one.gold)) ** 2 for n, p in enumerate(shares))
    return {
        **{name: float(max_at(scores) in one.gold) for name, scores in ranked.items()},
        "gold_probability": math.fsum(shares[n] for n in one.gold),
        "brier": brier,
    }


def max_at(scores: Sequence[float]) -> int:
    """Give where the largest score stands, the first of equals."""
    return max(range(len(scores)), key=lambda n: (scores[n], -n))


_UNITS = {"gold_probability": "probability", "brier": "Brier score"}


def _metrics(items: Sequence[Item], main: str) -> dict[str, Metric]:
    names = [main, *(name for name in items[0].values if name != main)]
    return {
        name: mean(items, name, unit=_UNITS.get(name, "correct"), higher_is_better=name != "brier")
        for name in names
    }
