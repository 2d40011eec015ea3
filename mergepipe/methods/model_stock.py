"""Move the base towards the average of the models, as far as their task vectors agree.

Jang, Yun and Han, "Model Stock: All we need is just a few fine-tuned models", ECCV 2024.
https://arxiv.org/abs/2403.19522

    cos ϑ = mean over pairs i < j of ⟨τ_i, τ_j⟩ / (‖τ_i‖ ‖τ_j‖)
    t = N cos ϑ / (1 + (N−1) cos ϑ),    θ = t · 1/N Σ_i θ_i + (1−t) θ_0

Each tensor has its t, and with `filter_wise` each row W[i, :]. The paper takes one angle for all
pairs; cosines are averaged here, as in mergekit (FusionBench averages the angles). Models that
point away from one another, cos ϑ < 0, move the base backwards; where the denominator is below
1e-6 there is no estimate, and the base stays. mergekit takes ‖τ_i‖ ‖τ_j‖ for 1e-6 at least, which
shrinks the cosines of small tensors, such as norms (`compat: mergekit`).

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
>>> apply("model_stock", base, {"a": a, "b": b})
tensor([0.8284, 0.4142])
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mergepipe.delta import add_update
from mergepipe.gram import add_weighted, add_weighted_packed, survey_gram
from mergepipe.method import Block, Cut, Method, Parameters, Scope, Survey, Target

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

_SINGULAR = 1e-6
_LEAST = {"none": 1e-30, "mergekit": 1e-6}


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    filter_wise: bool = Field(False, description="an own t for each row instead of each tensor")
    compat: Literal["none", "mergekit"] = Field(
        "none", description="how small a product of norms counts"
    )


def cut(shared: Shared, _: Target) -> Cut:
    """Whole rows where each has its own t."""
    return "rows" if shared.filter_wise else "anywhere"


def _ratio(gram: NDArray[np.float64], compat: str) -> NDArray[np.float64]:
    """The interpolation ratio t from ⟨τ_i, τ_j⟩ [N, N] of a tensor, or [N, N, rows] of rows."""
    count, least = len(gram), _LEAST[compat]
    norms = np.sqrt([gram[i, i] for i in range(count)])
    pairs = list(combinations(range(count), 2))
    products = [norms[i] * norms[j] for i, j in pairs]
    with np.errstate(invalid="ignore"):  # task vectors beyond fp32: what is written is checked
        cosines = [
            np.clip(gram[i, j] / np.maximum(product, least), -1, 1)
            for (i, j), product in zip(pairs, products, strict=True)
        ]
    cosine = sum(cosines) / len(pairs)
    denominator = 1 + (count - 1) * cosine
    singular = np.abs(denominator) < _SINGULAR
    return np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, denominator))


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find t/N of a tensor, the same for all models; rows need no more than themselves."""
    if scope.shared.filter_wise:
        return None
    count = len(scope.each)
    gram = yield from survey_gram(count)
    return (float(_ratio(np.array(gram), scope.shared.compat)) / count,) * count


def merge(block: Block[Each, Shared], coefficients: tuple[float, ...] | None) -> Tensor:
    """θ_0 + t/N Σ_i τ_i."""
    if coefficients is not None:
        return add_weighted(block, coefficients)
    deltas = [delta.reshape(-1, max(block.target.columns, 1)) for delta in block.deltas]
    wide = [delta.double() for delta in deltas]
    gram = np.array([[(x * y).sum(1).cpu().numpy() for y in wide] for x in wide])
    ratio = deltas[0].new_tensor(_ratio(gram, block.shared.compat) / len(wide))
    update = sum(deltas[1:], deltas[0]) * ratio[:, None]
    return add_update(block.base, update.flatten(), 1.0)


def kernel(block: Block[Each, Shared], coefficients: tuple[float, ...], out: Out) -> None:
    """Do the same with a packed block, where a tensor has one t."""
    add_weighted_packed(block, coefficients, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(2, None),
    survey=survey,
    sweeps=lambda shared: int(not shared.filter_wise),
    cut=cut,
    kernel=kernel,
    has_kernel=lambda shared: not shared.filter_wise,
    against="mergekit 0.1.5",
)
