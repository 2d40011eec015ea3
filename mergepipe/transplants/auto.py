"""Choose a method by a text, or by how well it finds rows of shared tokens that it is not shown.

Candidates are pursuit with 4 to 64 atoms, the interpolation of 8 neighbours, the affine map, FOCUS
with the donor's rows, and the mean of the base's tokens that spell a token (`subword`).

With `text`, the model is loaded and given the rows of each in turn; the one of the fewest bits per
byte is taken. Of the tokens that do not occur, `sample` are made and stand for all. In a model
with a head of its own, each table is chosen while the other's rows are those of `subword`.

Without, `withheld` of the shared tokens are left out, and every candidate makes their rows from
the others. The one with the largest median cosine to the rows that the base has, both less the
base's mean, is taken.

    cos_t = ⟨y_t - m, p_t - m⟩ / (‖y_t - m‖ ‖p_t - m‖),   score = median over withheld t

The base spells a shared token by itself; `subword` is ranked by what the longest other tokens make
of it. Where that is best, the two spaces have too little in common.

How much of a token's donor row a method explains would say little: with more atoms it explains
more, and may be further from the base's row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mergepipe.evaluate.data import DataFile
from mergepipe.transplant import Fitted, Ids, TransplantMethod, load_transplant
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.judging import judge_of
from mergepipe.transplant.landmarks import landmarks
from mergepipe.transplant.pursuit import default_gram_bytes
from mergepipe.transplant.segmenting import spelled_by_others
from mergepipe.transplant.task import Task
from mergepipe.transplant.withheld import FEWEST, median_cosine, withheld
from mergepipe.transplants import omp

_OTHERS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("common_interpolation", {"k": 8}),
    ("affine", {}),
    ("focus", {"fallback": "mean"}),
)


class Parameters(Base):
    """What candidates are judged by, and how much of it."""

    text: DataFile | None = Field(None, description="judge by this text: plain, or JSON Lines")
    text_bytes: PositiveInt = Field(16_384, description="read of the text, from its beginning")
    sample: PositiveInt = Field(1024, description="tokens made of those not in the text")
    withheld: PositiveInt = Field(400, description="shared tokens to be found, without a text")


@dataclass(frozen=True)
class _Candidate:
    name: str
    parameters: Mapping[str, Any]
    loss: float

    def __str__(self) -> str:
        shown = (f"{key}={value}" for key, value in self.parameters.items())
        return " ".join([self.name, *shown])


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Rank the candidates, tell how they did, and fit the best to all shared tokens."""
    if task.donor is None or len(task.anchors) < FEWEST:
        task.tell("auto: subword, since there are no rows of shared tokens to learn from")
        return _fit(task, "subword", {})
    if parameters.text is not None and task.checkpoint is not None:
        found = list(_by_text(task, parameters))
    else:
        found = list(_by_withheld(task, parameters))
    best = min(found, key=lambda one: one.loss)
    task.tell(f"auto: {best}")
    return _fit(task, best.name, best.parameters)


def _fit(task: Task, name: str, parameters: Mapping[str, Any]) -> Fitted:
    method = load_transplant(name)
    fitted: Fitted = method.fit(task, method.parameters(**parameters))
    return fitted


def _rows(task: Task, name: str, parameters: Mapping[str, Any], positions: Ids) -> Tensor:
    return _fit(replace(task, tell=lambda _: None), name, parameters)(positions).rows


def _by_text(task: Task, parameters: Parameters) -> Iterator[_Candidate]:
    """Give each candidate's bits per byte."""
    assert parameters.text is not None, "a text to judge by"
    judge = judge_of(
        task, parameters.text, most_bytes=parameters.text_bytes, sample=parameters.sample
    )
    task.tell(f"auto: {judge.size:,} bytes of text, {judge.occurring} of the missing tokens in it")
    for name, given, rows in _made(task, judge.positions):
        loss = judge.bits(rows)
        task.tell(f"auto: {_Candidate(name, given, loss)}: {loss:.4f} bits per byte")
        yield _Candidate(name, given, loss)


def _made(task: Task, positions: Ids) -> Iterator[tuple[str, Mapping[str, Any], Tensor]]:
    for name, given in (("subword", {}), *_OTHERS):
        yield name, given, _rows(task, name, given, positions)
    for k, rows in omp.in_sizes(task, load_transplant("omp").parameters(), positions).items():
        yield "omp", {"k": k}, rows


def _by_withheld(task: Task, parameters: Parameters) -> Iterator[_Candidate]:
    """Give each candidate's median cosine on withheld shared tokens, less than which is worse."""
    marks = landmarks(task, center=True)  # those whose donor row holds something
    held = withheld(len(marks.pairs), parameters.withheld, task.seed)
    donor_ids, ids = marks.pairs[held].T
    true, center = task.base[ids], marks.base_mean
    known = replace(task, anchors=np.delete(marks.pairs, held, axis=0), missing=donor_ids)
    pursuit = load_transplant("omp").parameters()
    scores: list[tuple[str, Mapping[str, Any], float]] = [
        ("omp", {"k": k}, cosine)
        for k, cosine in omp.ranked(marks, omp.dictionary(marks, pursuit), held).items()
    ]
    for name, given in _OTHERS:
        made = _rows(known, name, given, np.arange(len(held)))
        scores.append((name, given, median_cosine(made, true, center)))
    scores.append(("subword", {}, _spelled(task, ids, center)))
    for name, given, cosine in scores:
        candidate = _Candidate(name, given, -cosine)
        task.tell(f"auto: {candidate}: median cosine {cosine:.3f} on {len(held)} tokens")
        yield candidate


def _spelled(task: Task, ids: Ids, center: Tensor) -> float:
    """Give the median cosine of tokens of the base with what other tokens that spell them mean."""
    base = task.match.base
    longest = max(len(token.bytes) for token in base.tokens.values())
    found = {int(one): spelled_by_others(base, int(one), longest) for one in ids}
    found = {one: [p for p in pieces if p < task.base.rows] for one, pieces in found.items()}
    spelled = {one: pieces for one, pieces in found.items() if pieces}
    if not spelled:
        return -1.0
    made = torch.stack([task.base[np.array(p)].double().mean(0) for p in spelled.values()])
    return median_cosine(made, task.base[np.array(list(spelled))], center)


METHOD = TransplantMethod(
    Parameters,
    fit,
    scratch=lambda shared, given: (default_gram_bytes(shared), given.text is not None),
)
