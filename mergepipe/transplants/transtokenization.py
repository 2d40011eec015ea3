"""Mix the tokens that a token is translated by, as often as a parallel text aligns them.

Remy, Delobelle, Avetisyan, Khabibullina, de Lhoneux and Demeester, "Trans-Tokenization and
Cross-lingual Vocabulary Transfers: Language Adaptation of LLMs for Low-Resource NLP", COLM 2024.
https://arxiv.org/abs/2408.04303

    p(b | d) = count(d, b) / Σ_b count(d, b)
    y_d      = Σ_b p(b | d) E[b]

`counts` is what an aligner (fast_align, awesome-align) made of a parallel text: lines of a donor
token, a base token, both as their vocabularies spell them, and how often they are aligned; lines
of the same pair add up, and pairs counted fewer than `min_count` times are left out. A token that
both vocabularies have is its own translation.

A donor token without counts gets those of its relatives r, the tokens with counts that start with
it, or that it contains (the longest first, none that lies in another):
p(b | d) ∝ Σ_r p(b | r) (1 + [b starts a word]). What is left gets the row of the base's unknown
token, as the authors' code does, or another fallback. Both tables get the same weights.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field
from torch import Tensor

from mergepipe.errors import Problems, did_you_mean
from mergepipe.evaluate.data import DataFile
from mergepipe.tokenizer.vocabulary import Vocabulary
from mergepipe.transplant import Fitted, Ids, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.combining import Fallback, combined, padded
from mergepipe.transplant.task import Task
from mergepipe.transplant.vectors import read_pairs

_MAX_FAULTS = 10

# Base id -> share, for each text that donor tokens stand for.
Translations: TypeAlias = Mapping[bytes, Mapping[int, float]]


class Parameters(Base):
    """What the aligner counted."""

    counts: DataFile = Field(description="lines `donor token<TAB>base token<TAB>count`")
    min_count: float = Field(10, ge=0, description="smallest count of a pair")
    relatives: bool = Field(True, description="a token without counts takes its relatives'")
    fallback: Literal["unk"] | Fallback = Field("unk", description="rows of what is left")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Read the counts, and find the relatives of tokens that have none."""
    donor, base = task.match.donor, task.match.base
    counts = read_counts(parameters.counts, donor, base)
    shares = {
        number: found
        for number, row in counts.items()
        if (found := _shares(row, parameters.min_count, task.base.rows))
    }
    known: Translations = {donor.tokens[n].bytes: row for n, row in shares.items()} | {
        donor.tokens[int(theirs)].bytes: {int(ours): 1.0} for theirs, ours in task.anchors
    }
    spelled = sorted(known)
    starts = {n for n, token in base.tokens.items() if token.bytes.startswith(b" ")}
    unknown = base.roles.get("unk") if parameters.fallback == "unk" else None

    def weights_of(position: int) -> Mapping[int, float]:
        token = donor.tokens[int(task.missing[position])]
        found = shares.get(token.id)
        if not found and parameters.relatives and token.kind == "piece":
            found = inherited([known[one] for one in relatives(token.bytes, spelled)], starts)
        return found or ({} if unknown is None else {unknown: 1.0})

    def weigh(positions: Ids) -> tuple[Tensor, Tensor]:
        return padded(task, [dict(weights_of(int(position))) for position in positions])

    fallback = "mean" if parameters.fallback == "unk" else parameters.fallback
    return combined(task, weigh, fallback)


def read_counts(path: Path, donor: Vocabulary, base: Vocabulary) -> dict[int, dict[int, float]]:
    """Read counts by donor id and base id.

    Raises
    ------
    InputError
        naming the lines with a token that its vocabulary does not have, or without a number.

    """
    counts: dict[int, dict[int, float]] = {}
    problems = Problems()
    for line, (theirs, ours, written) in read_pairs(path, 3):
        where = f"{path}:{line}"
        for vocabulary, text in ((donor, theirs), (base, ours)):
            if text not in vocabulary.ids:
                near = did_you_mean(
                    text, [t for t in (f"Ġ{text}", f"▁{text}") if t in vocabulary.ids]
                )
                problems.add(where, f"'{text}' is no token of {vocabulary.label}{near}")
        count = _number(written)
        if count is None:
            problems.add(where, f"'{written}' is no count", "write a number, 0 or more")
        if len(problems.found) >= _MAX_FAULTS:
            break
        if not problems.found and count is not None:
            row = counts.setdefault(donor.ids[theirs], {})
            row[base.ids[ours]] = row.get(base.ids[ours], 0.0) + count
    problems.raise_any()
    return counts


def relatives(text: bytes, known: list[bytes]) -> list[bytes]:
    """Give the texts of `known`, sorted, that start with `text`, or that it contains.

    >>> relatives(b"haust", [b"au", b"aus", b"h", b"hausta", b"haustier", b"t", b"us"])
    [b'hausta', b'haustier', b'aus', b'h', b't']
    """
    return list(dict.fromkeys([*_starting(text, known), *_contained(text, known)]))


def inherited(rows: list[Mapping[int, float]], starts: set[int]) -> dict[int, float]:
    """Add up what the relatives are translated by, words' starts twice; the sum is 1."""
    total: dict[int, float] = {}
    for row in rows:
        for number, share in row.items():
            total[number] = total.get(number, 0.0) + share * (2 if number in starts else 1)
    mass = math.fsum(total.values())
    return {number: share / mass for number, share in total.items()}


def _starting(text: bytes, known: list[bytes]) -> Iterator[bytes]:
    for one in known[bisect_left(known, text) :]:
        if not one.startswith(text):
            return
        yield one


def _contained(text: bytes, known: list[bytes]) -> Iterator[bytes]:
    taken: list[tuple[int, int]] = []
    for size in range(len(text) - 1, 0, -1):
        for start in range(len(text) - size + 1):
            end, one = start + size, text[start : start + size]
            place = bisect_left(known, one)
            if place == len(known) or known[place] != one:
                continue
            if not any(first <= start and end <= last for first, last in taken):
                taken.append((start, end))
                yield one


def _shares(row: Mapping[int, float], least: float, rows: int) -> dict[int, float]:
    kept = {number: n for number, n in row.items() if n >= least and n > 0 and number < rows}
    total = math.fsum(kept.values())
    return {number: n / total for number, n in kept.items()}


def _number(written: str) -> float | None:
    try:
        count = float(written)
    except ValueError:
        return None
    return count if count >= 0 and math.isfinite(count) else None


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"base tokenizer"}))
