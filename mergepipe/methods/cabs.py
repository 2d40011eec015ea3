"""Keep the n largest of every m elements of each task vector, none that an earlier model keeps.

Yang et al., "CABS: Conflict-Aware and Balanced Sparsification for Enhancing Model
Merging", ICML 2025. https://arxiv.org/abs/2503.01874

    τ̂_i = the n largest |x| of each group of m of x = τ_i ⊙ (1 − (M_1 ∪ … ∪ M_{i−1}))
    M_i = [τ̂_i ≠ 0]
    θ   = θ_0 + λ Σ_i w_i τ̂_i

Models take turns in the order of the recipe. Groups are runs of the tensor, row by row; a last one
of l < m elements keeps ⌈n·l/m⌉ (the authors drop it, or refuse). They take 64 of 256 and λ = 1.2
for two models of 7 B parameters, 3 of 32 and λ from 0.4 to 0.9 for RoBERTa. With more than m/n
models, the last ones get what is left; a variant of the authors' for n ≥ m/2 gives the second of
two models half of each group again.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(4), torch.tensor([4.0, 1, -2, 3]), torch.tensor([5.0, 1, 3, 2])
>>> apply("cabs", base, {"a": a, "b": b}, n=1, m=2, lambda_=1.0)
tensor([4., 1., 3., 3.])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.delta import add_update
from mergepipe.kernels.masks import add_balanced
from mergepipe.method import Block, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="factor on what is kept of the model's task vector")


class Shared(Parameters):
    """For the whole merge."""

    lambda_: float = Field(1.2, alias="lambda", description="factor on the sum of task vectors")
    n: int = Field(64, ge=0, description="how many elements of each group are kept")
    m: int = Field(256, ge=1, le=1 << 20, description="how many elements are a group")


def check(_: Sequence[Each], shared: Shared) -> None:
    """Refuse to keep more than there is."""
    if shared.n > shared.m:
        raise ValueError(f"n is how many of m stay, but n = {shared.n} > m = {shared.m}")


def _largest(values: Tensor, count: int) -> Tensor:
    """Set to 0 all but the `count` largest magnitudes of each row; the first of equal ones stay."""
    order = values.abs().argsort(dim=-1, descending=True, stable=True)[:, :count]
    return values.new_zeros(values.shape).scatter(-1, order, values.gather(-1, order))


def _balanced(values: Tensor, shared: Shared) -> Tensor:
    """Keep n of each group of m, and as large a share of the group that is cut short."""
    import torch

    n, m = shared.n, shared.m
    short = values.numel() % m
    end = values.numel() - short
    whole, rest = values[:end], values[end:]
    parts = _largest(whole.reshape(-1, m), n), _largest(rest.reshape(1, -1), -(-n * short // m))
    return torch.cat([part.flatten() for part in parts])


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """Let the models choose in turn, add up what they keep."""
    update, free = None, None
    for delta, each in zip(block.deltas, block.each, strict=True):
        kept = _balanced(delta if free is None else delta.where(free, 0.0), block.shared)
        free = kept == 0 if free is None else free & (kept == 0)
        update = kept * each.weight if update is None else update + kept * each.weight
    assert update is not None, "a merge has models"
    return add_update(block.base, update, block.shared.lambda_)


def kernel(block: Block[Each, Shared], _: None, out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    shared, weights = block.shared, [each.weight for each in block.each]
    add_balanced(block.packed, shared.n, shared.m, weights, shared.lambda_, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    check=check,
    cut=lambda shared, _: shared.m,
    kernel=kernel,
    against="its formula in numpy",
)
