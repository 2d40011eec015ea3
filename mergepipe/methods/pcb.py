"""Weigh each parameter of each model by its size there and its agreement with the other models.

Du et al., "Parameter Competition Balancing for Model Merging", NeurIPS 2024.
https://arxiv.org/abs/2410.02396

    a_i  = |τ_i| clipped to its quantiles q and 1 − q,    τ̃_i = sgn(τ_i) a_i
    β_i  = exp(N·norm(a_i)²) · tanh(τ_i Σ_j τ_j),         norm: to [0, 1], all 0 for a constant
    s_i  = norm(max(β_i, its quantile 1 − ratio))
    θ    = θ_0 + λ Σ_i s_i w_i τ̃_i / Σ_i s_i

So a model takes part in at most ⌈ratio·n⌉ − 1 of its n elements; where none does, the base stays.
This is the authors' code (the paper writes β with softmax): it ranks the elements of the whole
model (`scope: model`), takes q = 1e-4, a ratio of 0.05 to 0.1 and λ = 1.2, or searches a λ_i per
model in [0.8, 1.3] on validation data (here λ·w_i).

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(4), torch.tensor([4.0, 1, -2, 1]), torch.tensor([1.0, 1, 3, 2])
>>> apply("pcb", base, {"a": a, "b": b}, ratio=0.5, quantile=0.0, lambda_=1.0)
tensor([4., 0., 3., 0.])
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mergepipe.delta import add_update
from mergepipe.method import Block, Method, Parameters, Scope, Survey
from mergepipe.quantile import QUANTILE_SWEEPS, survey_order_statistics

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_SHARE = 1e-12  # of all models' scores; the authors' guard against a division by 0


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="factor on the model's task vector where it takes part")


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.2, alias="lambda", description="factor on the merged task vector")
    ratio: float = Field(0.1, ge=0, le=1, description="fraction of the elements with a score")
    quantile: float = Field(1e-4, ge=0, lt=0.5, description="where magnitudes are clipped")
    scope: Literal["model", "tensor"] = Field("model", description="where elements are ranked")


@dataclass(frozen=True, slots=True)
class Found:
    """What the survey tells `merge`: by model, ends between which values are clipped."""

    count: int  # N
    sizes: Mapping[str, tuple[float, ...]]  # of |τ_i|
    scores: Mapping[str, tuple[float, ...]]  # of β_i


def scope(_: Each, shared: Shared) -> Hashable | None:
    """One scope per tensor, or one for all tensors clipped alike."""
    return None if shared.scope == "tensor" else (shared.quantile, shared.ratio)


def _ranks(size: int, low: Decimal, high: Decimal) -> tuple[int, int]:
    """Where, of sorted values, those of quantiles low and high lie."""
    first = min(int(size * low), size - 1)
    return first, max(first, int(size * high - 1))


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the quantiles of magnitudes, then of the scores that depend on them."""
    sizes = {label: size for label, size in scope.sizes.items() if size}
    if not sizes:
        return None
    q, r = (Decimal(repr(part)) for part in (scope.shared.quantile, scope.shared.ratio))
    clipped = {label: _ranks(size, q, 1 - q) for label, size in sizes.items()}
    ends = yield from survey_order_statistics(clipped, _magnitudes)
    count = len(scope.sizes)
    floors = {label: _ranks(size, 1 - r, Decimal(1)) for label, size in sizes.items()}
    scores = yield from survey_order_statistics(floors, partial(_scores, count, ends))
    return Found(count, ends, scores)


def _magnitudes(block: Block[Each, Shared]) -> dict[str, Tensor]:
    pairs = zip(block.labels, block.deltas, strict=True)
    return {label: delta.abs() for label, delta in pairs}


def _scores(
    count: int, ends: Mapping[str, tuple[float, ...]], block: Block[Each, Shared]
) -> dict[str, Tensor]:
    """β_i, but for the factor exp(−N): it does not change the norm and keeps exp finite."""
    deltas = [delta.double() for delta in block.deltas]
    total = sum(deltas[1:], deltas[0])
    scores: dict[str, Tensor] = {}
    for label, delta in zip(block.labels, deltas, strict=True):
        size = _norm(delta.abs(), ends[label])
        scores[label] = ((count * (size * size - 1)).exp() * (delta * total).tanh()).float()
    return scores


def _norm(values: Tensor, ends: tuple[float, ...]) -> Tensor:
    """Clip to `ends` and stretch to [0, 1], in fp64."""
    low, high = ends
    shifted = values.double().clamp(low, high) - low
    return shifted / (high - low) if high > low else shifted * 0


def merge(block: Block[Each, Shared], found: Found | None) -> Tensor:
    """Average the clipped task vectors by their scores, add."""
    assert block.base is not None, "pcb needs a base"
    if found is None:
        return block.base
    scores = _scores(found.count, found.sizes, block)
    total, share = block.base.double() * 0, block.base.double() * 0
    for label, delta, each in zip(block.labels, block.deltas, block.each, strict=True):
        own = _norm(scores[label], found.scores[label])
        total = total + own * each.weight * delta.sign() * delta.abs().clamp(*found.sizes[label])
        share = share + own
    update = total / share.clamp(min=_LEAST_SHARE)
    return add_update(block.base, update.float(), block.shared.lambda_)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey,
    scope=scope,
    sweeps=lambda _: 2 * QUANTILE_SWEEPS,
    against="the authors' release, rewritten in numpy",
)
