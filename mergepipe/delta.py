"""What methods on task vectors share: elect signs, combine, add to the base.

A task vector is τ_i = θ_i − θ_0. Every function here is elementwise on blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mergepipe.kernels.fused import Band, Combine, Draw, add_updates
from mergepipe.method import Block

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

__all__ = [
    "LATE",
    "NO_WEIGHT",
    "Election",
    "add_packed",
    "add_update",
    "agreeing",
    "combine",
    "divide",
    "packed_election",
    "packed_sum",
    "plain_divisor",
]

AnyBlock: TypeAlias = Block[Any, Any]
Election: TypeAlias = Literal["sum", "mergekit", "reference"]
NO_WEIGHT = 1e-8  # a sum of weights below this is not divided by
LATE = frozenset({"weight", "lambda_", "normalize"})  # parameters of what is done here alone


def add_packed(
    block: AnyBlock,
    how: Combine,
    out: Out,
    *,
    bands: Sequence[Band] | None = None,
    draws: Sequence[Draw] | None = None,
) -> None:
    """Trim, drop, combine and add the task vectors of a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    count = len(block.labels)
    add_updates(
        block.packed,
        bands or [Band()] * count,
        draws or [Draw()] * count,
        block.start,
        how,
        out,
    )


def packed_sum(block: AnyBlock) -> Combine:
    """Say to a kernel that weighted task vectors are added up, scaled and added to the base."""
    shared, weights = block.shared, [each.weight for each in block.each]
    divisor = plain_divisor(weights, normalize=shared.normalize)
    return Combine(weights, divisor=divisor, scale=shared.lambda_)


def packed_election(block: AnyBlock) -> Combine:
    """Say to a kernel that those are which have the elected sign."""
    shared = block.shared
    return Combine(
        [each.weight for each in block.each],
        elect=shared.elect,
        normalize=shared.normalize,
        scale=shared.lambda_,
    )


def plain_divisor(weights: Sequence[float], *, normalize: bool) -> float | None:
    """Give what a plain sum is divided by; None if it is not."""
    share = sum(weights)
    return share if normalize and abs(share) >= NO_WEIGHT else None


def agreeing(vectors: Sequence[Tensor], rule: Election, majority: int = 0) -> tuple[Tensor, ...]:
    """Elect a sign per element from Σ_i x_i, and say where each vector agrees: bool masks.

    Where the sum is 0, `sum` elects nobody, `mergekit` elects +, and `reference` (ties-merging)
    elects `majority`, the sign that won most often in the scope, or − where that is 0 too.
    Elements that are 0 never agree.
    """
    total = sum(vectors[1:], vectors[0])
    positive = total >= 0 if rule == "mergekit" else total > 0
    negative = total < 0
    if rule == "reference":
        positive = positive | ((total == 0) & (majority > 0))
        negative = ~positive
    return tuple((positive & (x > 0)) | (negative & (x < 0)) for x in vectors)


def combine(
    vectors: Sequence[Tensor],
    weights: Sequence[float],
    masks: Sequence[Tensor] | None,
    *,
    normalize: bool,
) -> Tensor:
    """Add the weighted `vectors` up where their masks hold; divide by those weights if asked.

    Σ_i x_i·m_i / Σ_i w_i·m_i, with a divisor of 0 read as 1; without masks m_i = 1. The vectors
    already carry their weights.
    """
    if masks is None:
        plain, share = sum(vectors[1:], vectors[0]), plain_divisor(weights, normalize=normalize)
        return plain if share is None else divide(plain, share)
    total, divisor = vectors[0].new_zeros(()), vectors[0].new_zeros(())
    for vector, weight, mask in zip(vectors, weights, masks, strict=True):
        total = total + vector.where(mask, 0.0)
        divisor = divisor + vector.new_tensor(weight).where(mask, 0.0)
    return total / divisor.where(divisor != 0, 1.0) if normalize else total


def divide(values: Tensor, divisor: float) -> Tensor:
    """Divide by a number rounded to fp32; a GPU would multiply by the inverse of a plain one."""
    return values / values.new_tensor(divisor)


def add_update(base: Tensor | None, update: Tensor, scale: float) -> Tensor:
    """θ_0 + λ·update, and exactly θ_0 (also −0.0) where the update is 0."""
    assert base is not None, "a task-vector method has a base"
    return base.where(update == 0, base + scale * update)
