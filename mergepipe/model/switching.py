"""How likely texts are to several models that take turns: numbers alone, from their tokens' ln p.

Model i writes tokens of its own until it is at a place of the text where the turn may change: with
chance α somebody is drawn anew, model j with its weight w_j, else i goes on (Herbster and Warmuth,
"Tracking the best expert", 1998; switching of models in Volf and Willems, 1998). It may at each end
of a token of the writer's; what is counted are the ways to write a text that change turns only
where tokens of all models begin, so the sum over all texts is at most 1. Between two such places,
model i gives a span s of n_i tokens

    q_i(s) = Π_t p_i(t | before) · (1 − α + α·w_i)^(n_i − 1)

its own tokens, and at the n_i − 1 ends inside it went on. With the chance v_i that it is i's turn,

    p(s | before) = Σ_i v_i · q_i(s)
    v_i ← (1 − α) · v_i·q_i(s) / p(s | before)  +  α·w_i,        v_i = w_i at first.

With α = 1 and one tokenizer this is p(t) = Σ_i w_i · p_i(t), token by token; with α = 0 it is
p(x) = Σ_i w_i · p_i(x), text by text, whatever the tokenizers.

>>> whole = Trace((0, 1), (-1.0, -1.0), (True, True), 0, 2)
>>> round(text_logprobs([aligned([whole, whole])], [0.3, 0.7], 1.0)[0], 12)
-2.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.model.traces import Trace

__all__ = ["Spans", "aligned", "text_logprobs", "turns_after"]

Array: TypeAlias = NDArray[np.float64]

_BATCH_ENTRIES = 1 << 22  # spans times models, with padding


@dataclass(frozen=True, slots=True)
class Spans:
    """A text cut where a token of every model begins.

    `logprobs` float64 [span, model] is ln p of its tokens, `inner` float64 [span, model] how many
    ends of tokens lie inside. What was asked for begins at the span of index `first`.
    """

    logprobs: Array
    inner: Array
    first: int
    is_greedy: bool  # every model's likeliest tokens, from `first` on


def aligned(traces: Sequence[Trace]) -> Spans:
    """Cut a text where tokens of all models begin.

    A continuation begins at the last such place before it, if not with it.
    """
    starts = [np.array((0, *one.starts[1:]), dtype=np.int64)[: len(one.starts)] for one in traces]
    common = reduce(np.intersect1d, starts)
    spans = [np.searchsorted(common, one, side="right") - 1 for one in starts]
    count = len(common)
    logprobs = [
        np.bincount(span, weights=one.logprobs, minlength=count)
        for span, one in zip(spans, traces, strict=True)
    ]
    inner = [np.bincount(span, minlength=count) - 1.0 for span in spans]
    begins = [_begin(one) for one in traces]
    first = max(0, int(np.searchsorted(common, min(begins), side="right")) - 1) if count else 0
    greedy = all(
        one.greedy[at]
        for span, one in zip(spans, traces, strict=True)
        for at in np.flatnonzero(span >= first)
    )
    return Spans(np.stack(logprobs, -1), np.stack(inner, -1), first, greedy)


def _begin(trace: Trace) -> int:
    """Give the character where what was asked for begins."""
    if trace.first == 0:
        return 0
    return (*trace.starts, trace.characters)[trace.first]


def text_logprobs(texts: Sequence[Spans], weights: Sequence[float], switch: float) -> list[float]:
    """Give ln p of what was asked for of each text, in nats.

    `weights` [model] are above 0 and sum to 1, `switch` is α, from 0 to 1.
    """
    if switch in (0.0, 1.0):
        whole = _whole if switch == 0.0 else _apart
        return [whole(one, np.array(weights)) for one in texts]
    found: dict[int, float] = {}
    order = sorted(range(len(texts)), key=lambda at: -len(texts[at].logprobs))
    while len(found) < len(texts):
        rest = order[len(found) :]
        widest = max(1, texts[rest[0]].logprobs.size)
        batch = rest[: max(1, _BATCH_ENTRIES // widest)]
        values = _in_turns([texts[at] for at in batch], np.array(weights), switch)
        found |= zip(batch, values, strict=True)
    return [found[at] for at in range(len(texts))]


def _whole(spans: Spans, weights: Array) -> float:
    """α = 0: nobody's turn ends."""
    sums = np.log(weights) + np.cumsum(np.vstack([np.zeros_like(weights), spans.logprobs]), axis=0)
    return float(_log_sum(sums[-1]) - _log_sum(sums[spans.first]))


def _apart(spans: Spans, weights: Array) -> float:
    """α = 1: every span is written by whom its weight chooses."""
    scores = spans.logprobs[spans.first :] + (1 + spans.inner[spans.first :]) * np.log(weights)
    return float(_log_sum(scores).sum())


def _in_turns(texts: Sequence[Spans], weights: Array, switch: float) -> list[float]:
    """Go through the spans of several texts side by side."""
    longest = max(len(one.logprobs) for one in texts)
    scores = np.zeros((longest, len(texts), len(weights)))
    counted = np.zeros((longest, len(texts)), dtype=bool)
    stays = np.log1p(switch * (weights - 1))
    for at, one in enumerate(texts):
        size = len(one.logprobs)
        scores[:size, at] = one.logprobs + one.inner * stays
        counted[one.first : size, at] = True
    turns = np.tile(weights, (len(texts), 1))
    total = np.zeros(len(texts))
    for score, counts in zip(scores, counted, strict=True):
        top = score.max(-1, keepdims=True)
        joint = turns * np.exp(score - top)
        chance = joint.sum(-1, keepdims=True)
        total += np.where(counts, (np.log(chance) + top)[:, 0], 0.0)
        turns = (1 - switch) * joint / chance + switch * weights
    return [float(value) for value in total]


def turns_after(spans: Spans, weights: Sequence[float], switch: float) -> list[float]:
    """Give the chance of each model that it is its turn after a text."""
    drawn = np.array(weights)
    turns, stays = np.log(drawn), np.log1p(switch * (drawn - 1))
    for score in spans.logprobs + spans.inner * stays:
        joint = turns + score
        after = np.exp(joint - _log_sum(joint))
        with np.errstate(divide="ignore"):
            turns = np.log((1 - switch) * after + switch * drawn)
    return [float(value) for value in np.exp(turns)]


def _log_sum(values: Array) -> Array:
    """Give ln Σ exp over the last axis."""
    top = values.max(-1, keepdims=True)
    found: Array = (top + np.log(np.exp(values - top).sum(-1, keepdims=True)))[..., 0]
    return found
