"""Bits the model needs to code a byte of text: comparable between tokenizers, lower is better.

    bits per byte = − Σ_x ln p(x) / (ln 2 · Σ_x bytes(x))

over the texts x of a JSON Lines file, each after the model's prefix token; bytes are those of the
text in UTF-8. Every byte has the same weight: it is not the mean over texts. A text longer than
the model's limit is scored in disjoint windows. A model that gives each byte 1/256 needs 8.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, PositiveInt, model_validator

from mergepipe.evaluate import DataFile, Item, Metric, Result, read_jsonl
from mergepipe.model import Model


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`data` holds one text a line, in `field`; the first `limit` lines are used."""

    data: DataFile
    field: str = "text"
    limit: PositiveInt | None = None

    @model_validator(mode="after")
    def _data_has_text(self) -> Parameters:
        if not any(read_texts(self).values()):
            raise ValueError(f"every '{self.field}' in its data is empty")
        return self


def read_texts(parameters: Parameters) -> dict[str, str]:
    """Read the texts by line number."""
    records = read_jsonl(parameters.data, {parameters.field: str}, parameters.limit)
    return {str(line): record[parameters.field] for line, record in records.items()}


def evaluate(model: Model, parameters: Parameters) -> Result:
    """Score every text; items are the lines, with their nats and bytes."""
    texts = read_texts(parameters)
    scores = model.loglikelihood_rolling(list(texts.values()))
    nats = -math.fsum(score.logprob for score in scores)
    bits_per_byte = nats / (math.log(2) * sum(score.bytes for score in scores))
    items = tuple(
        Item(line, {"nats": abs(score.logprob), "bytes": score.bytes})
        for line, score in zip(texts, scores, strict=True)
    )
    metric = Metric(bits_per_byte, higher_is_better=False, n=len(items), unit="bits/byte")
    return Result({"bits_per_byte": metric}, items)
