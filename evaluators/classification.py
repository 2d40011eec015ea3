"""Share of texts that a classifier puts into the right class, higher is better.

The class of the highest logit is the model's answer. `macro_f1` is the mean over the classes that
occur in the data of 2·TP / (2·TP + FP + FN), `nats` the mean of −ln softmax(logits)[gold].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from pydantic import BaseModel, model_validator

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
from mergepipe.model import Ability, Classifier, Model

NEEDS: frozenset[Ability] = frozenset({"classify"})


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`data` holds a `text` and its `label` a line: the name of a class, or its number from 0."""

    data: DataFile

    @model_validator(mode="after")
    def _data_is_readable(self) -> Parameters:
        read_texts(self)
        return self


def read_texts(parameters: Parameters) -> dict[str, tuple[str, str | int]]:
    """Read (text, label) by line number."""
    records = read_jsonl(parameters.data, {"text": str, "label": object})
    return {str(line): (record["text"], record["label"]) for line, record in records.items()}


def evaluate(model: Model, context: Context[Parameters]) -> Result:
    """Classify every text; items are the lines."""
    texts = context.choose(read_texts(context.parameters))
    classifier = cast("Classifier", model)
    gold = _numbers(context.parameters, classifier.classes, texts)
    logits = context.ask(classifier.classify, [text for text, _ in texts.values()])
    chosen = [row.index(max(row)) for row in logits]
    items = tuple(
        Item(line, {"accuracy": float(said == right), "nats": _nats(row, right)})
        for line, row, said, right in zip(texts, logits, chosen, gold, strict=True)
    )
    return Result(
        {
            "accuracy": mean(items, "accuracy", unit="correct"),
            "macro_f1": Metric(macro_f1(chosen, gold), True, len(items), "F1"),
            "nats": mean(items, "nats", unit="nats", higher_is_better=False),
        },
        items,
        lossy=lossy_items(model, {line: text for line, (text, _) in texts.items()}),
    )


def _numbers(
    parameters: Parameters, classes: Sequence[str], texts: dict[str, tuple[str, str | int]]
) -> list[int]:
    """Give the number of each text's class."""
    found = []
    for line, (_, label) in texts.items():
        number = classes.index(label) if label in classes else label
        if type(number) is not int or not 0 <= number < len(classes):
            shown = ", ".join(classes[:5])
            what = f"the model has no class {label!r}"
            raise InputError(Problem(f"{parameters.data}:{line}", what, f"it has {shown} ..."))
        found.append(number)
    return found


def _nats(logits: Sequence[float], gold: int) -> float:
    top = max(logits)
    return math.log(math.fsum(math.exp(x - top) for x in logits)) + top - logits[gold]


def macro_f1(chosen: Sequence[int], gold: Sequence[int]) -> float:
    """Give the mean F1 of the classes in `gold`.

    >>> macro_f1([0, 0, 1], [0, 1, 1])
    0.6666666666666666
    """
    scores = []
    for one in sorted(set(gold)):
        hits = sum(c == g == one for c, g in zip(chosen, gold, strict=True))
        scores.append(2 * hits / (chosen.count(one) + gold.count(one)))
    return math.fsum(scores) / len(scores)
