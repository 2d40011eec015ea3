"""Breadcrumbs' half of `breadcrumbs` and `breadcrumbs_ties`: drop both tails of a task vector.

Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse
Masks", ECCV 2024. https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mergepipe.delta import add_packed
from mergepipe.kernels.fused import Combine
from mergepipe.kernels.packed import pack, unpacked
from mergepipe.kernels.ranks import band_rows
from mergepipe.method import Block, Cut, Scope, Survey, Target
from mergepipe.rescale import rescaled, survey_factors
from mergepipe.trim import LARGEST_SWEEPS, Trim, band, keep_largest, survey_ranks

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

__all__ = [
    "Found",
    "MaskScope",
    "Tails",
    "add_banded",
    "cut",
    "drop_tails",
    "has_kernel",
    "survey_tails",
    "tail_sweeps",
]

MaskScope: TypeAlias = Literal["tensor", "row"]
# The outliers, and the outliers with what stays; None where rows are masked by themselves.
Tails: TypeAlias = tuple[Mapping[str, Trim], Mapping[str, Trim]] | None


def _share(fraction: float, size: int) -> int:
    """⌊fraction·size⌋, in decimal: 0.29 of 100 is 29, not 28."""
    return int(Decimal(repr(fraction)) * size)


@dataclass(frozen=True, slots=True)
class Found:
    """What the survey tells `merge`."""

    tails: Tails
    factors: Mapping[str, float]


def survey_tails(scope: Scope[Any, Any]) -> Survey:
    """Find what stays of each tensor: ⌊density·n⌋ elements below the ⌊γ·n⌋ largest.

    Where fewer than that are left, fewer of the largest are dropped. Ties in magnitude go to the
    lower index, which counts as the larger.
    """
    if scope.shared.scope == "row":
        return Found(None, (yield from survey_factors(scope, partial(_masked, None))))
    outliers, largest = {}, {}
    for label, size in scope.sizes.items():
        stay = _share(scope.each[label].density, size)
        outliers[label] = min(_share(scope.each[label].gamma, size), size - stay)
        largest[label] = outliers[label] + stay
    tails = yield from survey_ranks(scope.sizes, (outliers, largest))
    return Found(tails, (yield from survey_factors(scope, partial(_masked, tails))))


def tail_sweeps(shared: Any) -> int:
    """Those of a trim, both ends at once, unless rows are masked by themselves; of norms, one."""
    return (0 if _in_rows(shared) else LARGEST_SWEEPS) + int(shared.rescale == "l1")


def cut(shared: Any, _target: Target) -> Cut:
    """Ask for blocks of whole rows where rows are masked by themselves."""
    return "rows" if _in_rows(shared) else "anywhere"


def _in_rows(shared: Any) -> bool:
    return bool(shared.scope == "row")


def drop_tails(block: Block[Any, Any], found: Found) -> list[Tensor]:
    """Give the block's task vectors with the largest and the smallest elements set to 0."""
    return rescaled(_masked(found.tails, block), block, found.factors)


def _masked(tails: Tails, block: Block[Any, Any]) -> tuple[Tensor, ...]:
    if tails is None:
        pairs = zip(block.deltas, block.each, strict=True)
        return tuple(_rows(delta, block.target.columns, each) for delta, each in pairs)
    above, kept = (keep_largest(block, trims) for trims in tails)
    return tuple(x.where(outlier == 0, 0.0) for outlier, x in zip(above, kept, strict=True))


def has_kernel(shared: Any) -> bool:
    """Whether packed blocks can be merged: where L1 norms are not asked for."""
    return bool(shared.rescale == "none")


def add_banded(block: Block[Any, Any], how: Combine, tails: Tails, out: Out) -> None:
    """Drop the tails of a packed block's task vectors, combine and add them."""
    if tails is None:
        add_packed(_masked_rows(block), replace(how, given=True), out)
        return
    above, kept = tails
    add_packed(block, how, out, bands=[band(block, kept[x], above[x]) for x in block.labels])


def _masked_rows(block: Block[Any, Any]) -> Block[Any, Any]:
    """Give a packed block with masked task vectors in place of models."""
    packed, columns = block.packed, max(block.target.columns, 1)
    assert packed is not None, "kernels take packed blocks"
    vectors = []
    for label, each in zip(block.labels, block.each, strict=True):
        top, stay = (_share(fraction, columns) for fraction in (each.gamma, each.density))
        vectors.append(band_rows(packed, block.row(label), columns, top=top, stay=stay))
    return replace(block, packed=pack([unpacked(packed, 0), *vectors], based=True))


def _rows(delta: Tensor, columns: int, each: Any) -> Tensor:
    rows = delta.reshape(-1, max(columns, 1))
    top, stay = (_share(fraction, rows.shape[-1]) for fraction in (each.gamma, each.density))
    order = rows.abs().argsort(dim=-1, descending=True, stable=True)[:, top : top + stay]
    return rows.new_zeros(rows.shape).scatter(-1, order, rows.gather(-1, order)).flatten()
