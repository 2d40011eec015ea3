"""Take from the model the parameters whose change matters most, the rest from the base.

Arcee, "Arcee Fusion" in MergeKit, 2025. https://github.com/arcee-ai/mergekit

    P = softmax(θ_1) + ε,    Q = softmax(θ_0) + ε    (row by row, ε = 1e-8)
    I = |θ_1 − θ_0| · Σ P ln(P/Q)    (the sum over a row)
    T = q_½ + 1.5 (q_¾ − q_¼)    of the values of I in the tensor
    θ = θ_1 where I ≥ T, else θ_0

q_p is element ⌊p (n−1)⌋ of the n values in order, exactly; mergekit estimates it where n > 10⁶.
Divergences are computed in fp64: of fine-tunes they are so small that mergekit's, in fp32, are
mostly rounding.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a = torch.zeros(5), torch.tensor([0.1, 0.2, 0.0, 0.1, 3.0])
>>> apply("arcee_fusion", base, {"a": a})
tensor([0., 0., 0., 0., 3.])
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mergepipe.kernels.select import count_high_torch, count_low_torch, locate, magnitude_bits
from mergepipe.method import Block, Method, Parameters, Scope, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor

_PADDING = 1e-8


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""


def _importance(block: Block[Each, Shared]) -> Tensor:
    """I in fp32, of a block of whole rows; never below 0, as rounding alone could be."""
    assert block.base is not None, "arcee_fusion needs a base"
    columns = max(block.target.columns, 1)
    base, model = (x.reshape(-1, columns) for x in (block.base, block.models[0]))
    p, q = (x.double().softmax(1) + _PADDING for x in (model, base))
    divergence = (p * (p / q).log()).sum(1, keepdim=True).clamp(min=0).float()
    return ((model - base).abs() * divergence).flatten()


def _highs(block: Block[Each, Shared]) -> Statistics:
    return {"counts": count_high_torch(magnitude_bits(_importance(block)))}


def _lows(bins: Sequence[int], block: Block[Each, Shared]) -> Statistics:
    bits = magnitude_bits(_importance(block))
    return {high: count_low_torch(bits, high) for high in bins}


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the threshold T, by histograms of the upper and then the lower halves of I's bits."""
    size = max(scope.sizes.values())
    if size == 0:
        return 0.0
    ranks = [size - quarter * (size - 1) // 4 for quarter in (1, 2, 3)]  # from the largest
    counts = (yield _highs)["counts"]
    places = [(*locate(counts, rank), rank) for rank in ranks]
    lows = yield partial(_lows, tuple(dict.fromkeys(high for high, _, _ in places)))
    bits = [high << 16 | locate(lows[high], rank - above)[0] for high, above, rank in places]
    low, middle, high = np.array(bits, np.uint32).view(np.float32).tolist()
    return middle + 1.5 * (high - low)


def merge(block: Block[Each, Shared], threshold: float) -> Tensor:
    """θ_1 where it matters; θ_0 elsewhere, and where they are equal."""
    assert block.base is not None, "arcee_fusion needs a base"
    model = block.models[0]
    chosen = (_importance(block) >= threshold) & (model != block.base)
    return model.where(chosen, block.base)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, 1),
    survey=survey,
    sweeps=lambda _: 2,
    cut=lambda *_: "rows",
    against="mergekit 0.1.5",
)
