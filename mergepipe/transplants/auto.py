"""Choose a method by how well it finds rows of shared tokens that it is not shown.

Of the shared tokens, `withheld` are left out, and every candidate makes their rows from the
others: pursuit with 4 to 64 atoms, the interpolation of 8 neighbours, the affine map. The one with
the largest median cosine to the rows that the base has, both less the base's mean, is taken.

    cos_t = ⟨y_t - m, p_t - m⟩ / (‖y_t - m‖ ‖p_t - m‖),   score = median over withheld t

If even that is below `least`, the spaces are too different: the mean of the base's tokens that
spell a token (`subword`) takes the place. Shared tokens are single tokens of the base, so that
method cannot be ranked among the others.

How much of a token's donor row a method explains would say little: with more atoms it explains
more, and may be further from the base's row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt

from mergepipe.transplant import Fitted, TransplantMethod, load_transplant
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.landmarks import Landmarks, landmarks
from mergepipe.transplant.task import Task

_CANDIDATES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    *(("omp", {"k": k}) for k in (4, 8, 16, 32, 64)),
    ("common_interpolation", {"k": 8}),
    ("affine", {}),
)
_FEWEST = 16  # shared tokens below which there is nothing to learn from
_SHARE = 4  # of the shared tokens, one in so many is withheld at most


class Parameters(Base):
    """How many shared tokens are withheld, and what is good enough."""

    withheld: PositiveInt = Field(400, description="shared tokens that the candidates must find")
    least: float = Field(0.6, ge=-1, le=1, description="median cosine below which subword is used")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Rank the candidates, tell how they did, and fit the best to all shared tokens."""
    if task.donor is None or len(task.anchors) < _FEWEST:
        task.tell("auto: subword, since there are no rows of shared tokens to learn from")
        return _fit(task, "subword", {})
    scores = [score for _, score in _ranked(task, parameters)]
    best = int(np.argmax(scores))
    name, chosen = _CANDIDATES[best]
    if scores[best] < parameters.least:
        task.tell(f"auto: subword, since none reaches a median cosine of {parameters.least:g}")
        return _fit(task, "subword", {})
    task.tell(f"auto: {_label(name, chosen)}")
    return _fit(task, name, chosen)


def _fit(task: Task, name: str, parameters: Mapping[str, Any]) -> Fitted:
    method = load_transplant(name)
    fitted: Fitted = method.fit(task, method.parameters(**parameters))
    return fitted


def _label(name: str, parameters: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])


def _ranked(task: Task, parameters: Parameters) -> Iterator[tuple[str, float]]:
    """Give each candidate's median cosine on withheld shared tokens."""
    pairs = landmarks(task, center=False).pairs  # those whose donor row holds something
    draws = np.random.Generator(np.random.Philox(key=task.seed))
    count = min(parameters.withheld, len(pairs) // _SHARE)
    held = np.sort(draws.permutation(len(pairs))[:count])
    rest = np.delete(pairs, held, axis=0)
    known = replace(task, anchors=rest, missing=pairs[held, 0], tell=lambda _: None)
    marks = landmarks(known, center=True)
    for name, chosen in _CANDIDATES:
        score = _cosine(marks, _fit(known, name, chosen), pairs[held, 1])
        task.tell(f"auto: {_label(name, chosen)}: median cosine {score:.3f} on {count} tokens")
        yield name, score


def _cosine(marks: Landmarks, fitted: Fitted, ids: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    center = marks.base_mean.double()
    made = fitted(np.arange(len(ids))).rows.cpu().double() - center
    true = marks.task.base[ids].cpu().double() - center
    return float(torch.cosine_similarity(made, true, dim=1).median())


METHOD = TransplantMethod(Parameters, fit)
