"""Trim each task vector, elect a sign per parameter, average what agrees with it.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023.
https://arxiv.org/abs/2306.01708

    τ̂_i  keeps the k largest |τ_i| of its scope, k = max(1, ⌊density·n⌋)
    s    = sgn(Σ_i w_i τ̂_i)
    θ    = θ_0 + λ Σ_i w_i τ̂_i [sgn(w_i τ̂_i) = s] / Σ_i w_i [sgn(w_i τ̂_i) = s]

The paper trims over the whole model (`scope: model`), keeps 20 % and has no weights (w_i = 1).
mergekit trims each tensor by itself (`scope: tensor`, `elect: mergekit`). `normalize: false`
leaves the division out (the paper's disjoint sum). Where the signed sum is 0, nobody is elected;
the authors' code fills in the sign that is commonest in the scope and keeps k + 1 elements and
all ties: `elect: reference`, `trim: reference`.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(4), torch.tensor([4.0, 1.0, 0, 3]), torch.tensor([2.0, 0, 1.0, -4])
>>> apply("ties", base, {"a": a, "b": b}, {"a": {"density": 0.5}, "b": {"density": 0.5}})
tensor([ 3.,  0.,  0., -4.])
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from mergepipe.delta import (
    LATE,
    Election,
    add_packed,
    add_update,
    agreeing,
    combine,
    packed_election,
)
from mergepipe.method import Block, Method, Parameters, Scope, Statistics, Survey
from mergepipe.rescale import Restore, rescaled, survey_factors
from mergepipe.trim import LARGEST_SWEEPS, Trim, band, keep_count, keep_largest, survey_largest

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="factor on the trimmed task vector; also its vote")
    density: float = Field(0.2, ge=0, le=1, description="fraction of the scope that is kept")


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.0, alias="lambda", description="factor on the merged task vector")
    normalize: bool = Field(True, description="divide by the weights that agree")
    rescale: Restore = Field("none", description="whether the L1 norm before trimming is restored")
    scope: Literal["model", "tensor"] = Field("model", description="where the largest are sought")
    trim: Literal["exact", "reference"] = Field("exact", description="k elements, or k+1 and ties")
    elect: Election = Field("sum", description="what a sum of zero elects")


@dataclass(frozen=True, slots=True)
class Found:
    """What the survey tells `merge`."""

    trims: Mapping[str, Trim]
    factors: Mapping[str, float]
    majority: int  # the sign elected most often in the scope; 0 unless `elect: reference`


def scope(each: Each, shared: Shared) -> Hashable | None:
    """One scope per tensor, or one for all tensors where a model has the same density."""
    return (
        None
        if shared.scope == "tensor"
        else (each.density, shared.trim, shared.elect, shared.rescale)
    )


def _count(density: float, size: int, trim: str) -> int:
    # The authors' kthvalue(n - m) with m = int(n·density) keeps element m + 1 as well.
    exact = keep_count(density, size)
    return exact if trim == "exact" else min(size, int(Decimal(repr(density)) * size) + 1)


def _kept(trims: Mapping[str, Trim], block: Block[Each, Shared]) -> Sequence[Tensor]:
    return keep_largest(block, trims)


def _weighted(found: Found, block: Block[Each, Shared]) -> list[Tensor]:
    kept = rescaled(_kept(found.trims, block), block, found.factors)
    return [delta * each.weight for delta, each in zip(kept, block.each, strict=True)]


def _sign_balance(found: Found, block: Block[Each, Shared]) -> Statistics:
    weighted = _weighted(found, block)
    signs = sum(weighted[1:], weighted[0]).sign()
    return {"balance": np.array(int(signs.sum().item()), np.int64)}


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the elements that stay, and the majority sign where it is needed."""
    shared = scope.shared
    counts = {
        label: _count(scope.each[label].density, size, shared.trim)
        for label, size in scope.sizes.items()
    }
    ties: Literal["index", "all"] = "index" if shared.trim == "exact" else "all"
    trims = yield from survey_largest(scope.sizes, counts, ties=ties)
    factors = yield from survey_factors(scope, partial(_kept, trims))
    found = Found(trims, factors, 0)
    if shared.elect != "reference":
        return found
    total = yield partial(_sign_balance, found)
    return replace(found, majority=int(np.sign(total["balance"])))


def sweeps(shared: Shared) -> int:
    """At most: those of the threshold, one for the norms, and one for the majority sign."""
    return LARGEST_SWEEPS + (shared.rescale == "l1") + (shared.elect == "reference")


def merge(block: Block[Each, Shared], found: Found) -> Tensor:
    """Trim, elect, disjoint mean, add."""
    shared = block.shared
    weights = [each.weight for each in block.each]
    weighted = _weighted(found, block)
    masks = agreeing(weighted, shared.elect, found.majority)
    update = combine(weighted, weights, masks, normalize=shared.normalize)
    return add_update(block.base, update, shared.lambda_)


def kernel(block: Block[Each, Shared], found: Found, out: Out) -> None:
    """Do the same with a packed block."""
    bands = [band(block, found.trims[label]) for label in block.labels]
    add_packed(block, packed_election(block), out, bands=bands)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey,
    late=lambda shared: frozenset() if shared.elect == "reference" else LATE,
    scope=scope,
    sweeps=sweeps,
    kernel=kernel,
    has_kernel=lambda shared: shared.elect != "reference" and shared.rescale == "none",
    against="mergekit 0.1.5; ties-merging's values",
)
