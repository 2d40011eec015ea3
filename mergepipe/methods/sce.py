"""Select the elements that vary most, weigh models by their energy there, erase minority signs.

Wan et al., "FuseChat: Knowledge Fusion of Chat Models", EMNLP 2025.
https://arxiv.org/abs/2408.07990

    M   = the k largest of v = Var_i τ_i,    k = ⌊select_topk · #{v ≠ 0}⌋    (all for 1)
    η_i = Σ (M ⊙ τ_i)² / Σ_j Σ (M ⊙ τ_j)²
    s   = sgn(Σ_i x_i), + for 0,    x_i = M ⊙ τ_i
    θ   = θ_0 + Σ_i η_i x_i [sgn(x_i) = s] / Σ_i η_i [sgn(x_i) = s]

Each tensor by itself. The code that made FuseChat-7B-v2.0 uses M for η alone, x_i = τ_i
(`variant: fuseai`). Where all energies are 0, models weigh the same; mergekit does so already
where their mean squares sum to less than 1e-6, which is usual for fine-tunes (`compat: mergekit`).

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(3), torch.tensor([2.0, 1, 1]), torch.tensor([0.0, 1, 2])
>>> apply("sce", base, {"a": a, "b": b}, select_topk=0.5)
tensor([2., 0., 0.])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from mergepipe.delta import add_packed, add_update, agreeing, combine
from mergepipe.kernels.fused import Combine
from mergepipe.kernels.select import count_equal
from mergepipe.kernels.sums import square_sums
from mergepipe.method import Block, Method, Parameters, Scope, Statistics, Survey
from mergepipe.trim import LARGEST_SWEEPS, VARIANCE, Trim, band, survey_largest, trimmed, variance

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

_MERGEKIT_FLOOR = 1e-6


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    select_topk: float = Field(
        1.0, ge=0, le=1, description="fraction of the elements that vary that is selected"
    )
    variant: Literal["masked", "fuseai"] = Field(
        "masked", description="whether only selected elements are merged, or all"
    )
    compat: Literal["none", "mergekit"] = Field("none", description="when models weigh the same")


@dataclass(frozen=True, slots=True)
class Found:
    """What the survey tells `merge`: what is selected (None: everything), and the weights."""

    selected: Trim | None
    weights: Mapping[str, float]


def _varying(block: Block[Each, Shared]) -> Statistics:
    if block.packed is not None:
        return {"varying": block.packed.count - int(count_equal(block.packed, [-1], [0])[0])}
    return {"varying": int(variance(block).count_nonzero())}


def _masked(selected: Trim | None, block: Block[Each, Shared]) -> tuple[Tensor, ...]:
    """M ⊙ τ_i."""
    if selected is None:
        return block.deltas
    mask = trimmed(variance(block), selected, (block.tensor, block.start)) != 0
    return tuple(delta.where(mask, 0.0) for delta in block.deltas)


def _energies(selected: Trim | None, block: Block[Each, Shared]) -> Statistics:
    if block.packed is not None:
        chosen = None if selected is None else band(block, selected)
        return {"energies": square_sums(block.packed, chosen)}
    masked = _masked(selected, block)
    return {"energies": np.array([float(x.double().square().sum()) for x in masked])}


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the selected elements, and each model's share of the energy there."""
    size, shared = max(scope.sizes.values()), scope.shared
    selected = None
    if shared.select_topk < 1:
        count = (yield _varying)["varying"]
        wanted = int(Decimal(repr(shared.select_topk)) * count)
        trims = yield from survey_largest({VARIANCE: size}, {VARIANCE: wanted})
        selected = trims[VARIANCE]
    energies = (yield partial(_energies, selected))["energies"]
    floor = _MERGEKIT_FLOOR * size if shared.compat == "mergekit" else 0.0
    total = float(energies.sum())
    if total == 0 or total < floor:
        return Found(selected, dict.fromkeys(scope.each, 1 / len(scope.each)))
    return Found(selected, dict(zip(scope.each, (float(e) / total for e in energies), strict=True)))


def sweeps(shared: Shared) -> int:
    """One for the energies; where elements are selected, one to count and those of a trim."""
    return 1 + (1 + LARGEST_SWEEPS if shared.select_topk < 1 else 0)


def merge(block: Block[Each, Shared], found: Found) -> Tensor:
    """Elect by all models alike, average by energy, add."""
    vectors = block.deltas if block.shared.variant == "fuseai" else _masked(found.selected, block)
    weights = [found.weights[label] for label in block.labels]
    masks = agreeing(vectors, "mergekit")
    weighted = [x * w for x, w in zip(vectors, weights, strict=True)]
    return add_update(block.base, combine(weighted, weights, masks, normalize=True), 1.0)


def kernel(block: Block[Each, Shared], found: Found, out: Out) -> None:
    """Do the same with a packed block."""
    all_stay = found.selected is None or block.shared.variant == "fuseai"
    how = Combine(
        [found.weights[label] for label in block.labels],
        elect="mergekit",
        normalize=True,
        weigh_late=True,
        select=None if all_stay or found.selected is None else band(block, found.selected),
    )
    add_packed(block, how, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey,
    sweeps=sweeps,
    kernel=kernel,
    against="mergekit 0.1.5; FuseAI's values",
)
