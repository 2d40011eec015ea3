"""Share of prompts that the model continues with exactly the answer, higher is better.

The model writes its likeliest continuation of `prompt`, up to a stop string, EOS or `max_tokens`.
It is right if that equals `answer`, spaces around both aside. With `extract`, a regular
expression, only the last match in what was written is compared (its first group, if it has one):
`extract: "(-?[0-9]+)"` takes the last number. Where nothing matches, the answer is wrong.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, Field, PositiveInt, model_validator

from mergepipe.evaluate import DataFile, Item, Metric, Result, read_jsonl
from mergepipe.model import Model


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`data` holds a `prompt` and an `answer` a line; the first `limit` lines are used."""

    data: DataFile
    max_tokens: PositiveInt = 16
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ("\n",)
    extract: re.Pattern[str] | None = None
    limit: PositiveInt | None = None

    @model_validator(mode="after")
    def _data_is_readable(self) -> Parameters:
        read_problems(self)
        return self


def read_problems(parameters: Parameters) -> dict[str, tuple[str, str]]:
    """Read (prompt, answer) by line number."""
    records = read_jsonl(parameters.data, {"prompt": str, "answer": str}, parameters.limit)
    return {str(line): (record["prompt"], record["answer"]) for line, record in records.items()}


def evaluate(model: Model, parameters: Parameters) -> Result:
    """Ask for every answer; items are the lines, each 1 or 0."""
    problems = read_problems(parameters)
    written = model.generate(
        [prompt for prompt, _ in problems.values()],
        stop=parameters.stop,
        max_tokens=parameters.max_tokens,
    )
    right = {
        line: float(extracted(generation.text, parameters.extract) == answer.strip())
        for (line, (_, answer)), generation in zip(problems.items(), written, strict=True)
    }
    share = sum(right.values()) / len(right)
    metric = Metric(share, higher_is_better=True, n=len(right), unit="correct")
    items = tuple(Item(line, {"exact_match": value}) for line, value in right.items())
    return Result({"exact_match": metric}, items)


def extracted(text: str, pattern: re.Pattern[str] | None) -> str | None:
    """Give the part of `text` that is compared, None where there is none."""
    if pattern is None:
        return text.strip()
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    return (matches[-1][1 if pattern.groups else 0] or "").strip()
