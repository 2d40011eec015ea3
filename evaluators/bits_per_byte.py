"""Bits the model needs to code a byte of text: comparable between tokenizers, lower is better.

    bits per byte = − Σ_x ln p(x) / (ln 2 · Σ_x bytes(x))

over the texts x of a JSON Lines file, each after the model's prefix token; bytes are those of the
text in UTF-8. Every byte has the same weight: it is not the mean over texts. A text longer than
the model's limit is scored in disjoint windows; with `stride`, each window after the first scores
that many tokens and sees the others as context. A model that gives each byte 1/256 needs 8.

A text that the model's tokenizer cannot express (`<unk>`, lower case) is `lossy`: the model was
scored on less than the text, and is compared on it only with models that have the same trouble.

`byte_perplexity` is 2 to that; `word_perplexity` is e to the nats per word, with words as
lm-evaluation-harness counts them: the pieces between runs of white space, empty ones too.
"""

from __future__ import annotations

import math
import re
from functools import partial

from pydantic import BaseModel, PositiveInt, model_validator

from mergepipe.evaluate import Context, DataFile, Item, Result, lossy_items, ratio, read_jsonl
from mergepipe.model import Ability, Model

NEEDS: frozenset[Ability] = frozenset({"rolling"})


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`data` holds one text a line, in `field`; `stride` is in tokens of the model."""

    data: DataFile
    field: str = "text"
    stride: PositiveInt | None = None

    @model_validator(mode="after")
    def _data_has_text(self) -> Parameters:
        if not any(read_texts(self).values()):
            raise ValueError(f"every '{self.field}' in its data is empty")
        return self


def read_texts(parameters: Parameters) -> dict[str, str]:
    """Read the texts by line number."""
    records = read_jsonl(parameters.data, {parameters.field: str})
    return {str(line): record[parameters.field] for line, record in records.items()}


def evaluate(model: Model, context: Context[Parameters]) -> Result:
    """Score every text; items are the lines, with their nats, bytes and words."""
    texts = context.choose(read_texts(context.parameters))
    rolling = partial(model.loglikelihood_rolling, stride=context.parameters.stride)
    scores = context.ask(rolling, list(texts.values()))
    items = tuple(
        Item(line, {"nats": abs(score.logprob), "bytes": score.bytes, "words": count_words(text)})
        for (line, text), score in zip(texts.items(), scores, strict=True)
    )
    bits = ratio(items, "nats", "bytes", scale=1 / math.log(2), unit="bits/byte")
    perplexities = {
        f"{of}_perplexity": ratio(items, "nats", f"{of}s", exponential=True, unit="perplexity")
        for of in ("byte", "word")
    }
    # Of texts without spaces the second is beyond any float.
    finite = {name: one for name, one in perplexities.items() if math.isfinite(one.value)}
    return Result({"bits_per_byte": bits, **finite}, items, lossy=lossy_items(model, texts))


def count_words(text: str) -> int:
    r"""Count the pieces of a text between runs of white space.

    >>> count_words("a bc\n")
    3
    """
    return len(re.split(r"\s+", text))
