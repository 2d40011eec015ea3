"""Share of prompts that the model continues with exactly the answer, higher is better.

The model writes its likeliest continuation of `prompt`, up to a stop string, EOS or `max_tokens`;
with `chat: true` it answers it, or the conversation in `messages`, by its chat template. It is
right if that equals `answer`, or one of several, spaces around both aside.

`extract` takes the part that is compared out of what was written:

    gsm8k_strict   the first number after "####" or "The answer is"
    last_number    the last number: 1,234.5
    last_line      the last line that is not blank
    choice_letter  the letter of a choice: "The answer is (B)", "(B)", "B.", "... B"
    REGEX          the last match, its first group if it has one: "(-?[0-9]+)"

Where there is no such part the answer is wrong; how often that was is `unextracted`. `normalize`
changes answers before they are compared: `lower`, `punctuation` (leaves it out), `number` (as the
decimal number that it is: $1,200.0 is 1200). With `samples` above 1 `exact_match` is their mean,
and `maj@k` asks whether the answer that most of the k give is right, the first of equals (Wang et
al., Self-Consistency, 2022, https://arxiv.org/abs/2203.11171).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field, PositiveInt, field_validator, model_validator

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate import Context, DataFile, Item, Result, lossy_items, mean
from mergepipe.evaluate.prompts import read_prompts, shown
from mergepipe.model import Ability, Generation, Model, Prompt

NEEDS: frozenset[Ability] = frozenset({"generate"})

Change: TypeAlias = Literal["strip", "lower", "punctuation", "number"]
Answer: TypeAlias = "str | Decimal"

_NUMBER = r"(?:(?<![\w.)])-)?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
_STRICT = re.compile(rf"(?:####|[Tt]he answer is)[\s:]*({_NUMBER})")
_LAST = re.compile(_NUMBER)
_LETTERS = tuple(
    map(
        re.compile,
        (
            r"[Aa]nswer(?:\s+is)?\s*:?\s*\(?([A-J])\b",
            r"\(([A-J])\)",
            r"\A\s*([A-J])(?:[.):,]|\s*\Z)",
            r"(?:\A|\s)([A-J])[.\s]*\Z",
        ),
    )
)
_PLAIN = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MAX_DIGITS = 1000  # a longer number is compared as text


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`data` holds a `prompt` (or `messages`) and an `answer`, or a list of them, a line."""

    data: DataFile
    max_tokens: PositiveInt = 16
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ("\n",)
    extract: str | None = None
    normalize: Annotated[tuple[Change, ...], Field(strict=False)] = ()
    chat: bool = False
    samples: PositiveInt = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0

    @field_validator("extract")
    @classmethod
    def _is_known(cls, extract: str | None) -> str | None:
        if extract is not None and extract not in EXTRACTORS:
            try:
                re.compile(extract)
            except re.error as error:
                known = ", ".join(EXTRACTORS)
                what = f"must be a valid regular expression ({error}), or one of {known}"
                raise ValueError(what) from error
        return extract

    @model_validator(mode="after")
    def _is_consistent(self) -> Parameters:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                "`samples` above 1 need a `temperature` above 0, else all are the same"
            )
        read_problems(self)
        return self


def read_problems(parameters: Parameters) -> dict[str, tuple[Prompt, tuple[str, ...]]]:
    """Read (prompt, right answers) by line number."""
    found = {}
    prompts = read_prompts(parameters.data, {"answer": object}, chat=parameters.chat)
    for line, one in prompts.items():
        answer = one.record["answer"]
        answers = answer if isinstance(answer, list) else [answer]
        if not answers or not all(isinstance(text, str) for text in answers):
            what = "field 'answer' must be text, or a list of texts"
            raise InputError(Problem(f"{parameters.data}:{line}", what))
        found[line] = (one.prompt, tuple(answers))
    return found


def evaluate(model: Model, context: Context[Parameters]) -> Result:
    """Ask for every answer; items are the lines, with the share of samples that are right."""
    parameters = context.parameters
    problems = context.choose(read_problems(parameters))
    prompts = [prompt for prompt, _ in problems.values()]
    written = [
        context.ask(_writer(model, parameters, context.seed + draw), prompts)
        for draw in range(parameters.samples)
    ]
    items = tuple(
        Item(line, _values([texts[n].text for texts in written], answers, parameters))
        for n, (line, (_, answers)) in enumerate(problems.items())
    )
    metrics = {name: mean(items, name, unit="correct") for name in items[0].values}
    if "unextracted" in metrics:
        metrics["unextracted"] = mean(items, "unextracted", unit="share", higher_is_better=False)
    asked = {line: shown(prompt) for line, (prompt, _) in problems.items()}
    return Result(metrics, items, lossy=lossy_items(model, asked))


def _writer(
    model: Model, parameters: Parameters, seed: int
) -> Callable[[list[Prompt]], list[Generation]]:
    def write(prompts: list[Prompt]) -> list[Generation]:
        return model.generate(
            prompts,
            stop=parameters.stop,
            max_tokens=parameters.max_tokens,
            temperature=parameters.temperature,
            seed=seed,
        )

    return write


def _values(
    texts: Sequence[str], answers: Sequence[str], parameters: Parameters
) -> dict[str, float]:
    """Judge the samples of one prompt."""
    gold = {normalized(answer, parameters.normalize) for answer in answers}
    parts = [extracted(text, parameters.extract) for text in texts]
    said = [None if one is None else normalized(one, parameters.normalize) for one in parts]
    values = {"exact_match": sum(one in gold for one in said) / len(said)}
    if len(said) > 1:
        values[f"maj@{len(said)}"] = float(majority(said) in gold)
    if parameters.extract is not None:
        values["unextracted"] = said.count(None) / len(said)
    return values


def majority(said: Sequence[Answer | None]) -> Answer | None:
    """Give the commonest answer, the first of equals; None where there is none.

    >>> majority(["a", None, "b", "b", None, None])
    'b'
    """
    votes = Counter(one for one in said if one is not None).most_common(1)
    return votes[0][0] if votes else None


def extracted(text: str, how: str | None) -> str | None:
    """Give the part of `text` that is compared, None where there is none."""
    if how is None:
        return text.strip()
    if how in EXTRACTORS:
        return EXTRACTORS[how](text)
    return _last(re.compile(how), text)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    return (matches[-1][1 if pattern.groups else 0] or "").strip()


def gsm8k_strict(text: str) -> str | None:
    """Give the first number after "####" or "The answer is".

    >>> gsm8k_strict("2 + 2 = 4. #### 4 #### 5")
    '4'
    """
    match = _STRICT.search(text)
    return match and match[1]


def last_number(text: str) -> str | None:
    """Give the last number.

    >>> last_number("5-3 makes 2, so $1,234.50.")
    '$1,234.50'
    """
    return _last(_LAST, text)


def last_line(text: str) -> str | None:
    """Give the last line that is not blank."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def choice_letter(text: str) -> str | None:
    """Give the letter of a choice, by the plainest form in which there is one.

    >>> choice_letter("A hard one. (A) is wrong, so the answer is (C).")
    'C'
    """
    return next((found for one in _LETTERS if (found := _last(one, text))), None)


EXTRACTORS: Mapping[str, Callable[[str], str | None]] = MappingProxyType(
    {one.__name__: one for one in (gsm8k_strict, last_number, last_line, choice_letter)}
)


def normalized(text: str, changes: Sequence[Change]) -> Answer:
    """Give an answer as it is compared.

    >>> normalized(" $1,200.0 ", ["number"]) == normalized("1200", ["number"])
    True
    """
    text = text.strip()
    if "lower" in changes:
        text = text.lower()
    if "number" in changes:
        plain = text.replace(",", "").replace("$", "").removesuffix(".")
        if len(plain) <= _MAX_DIGITS and _PLAIN.fullmatch(plain):
            return Decimal(plain)
    return text.translate(_NO_PUNCTUATION).strip() if "punctuation" in changes else text
