"""Find the task matrix that interferes least with what each task's inputs see, without data.

Cheng et al., "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via
Task Vectors", ICML 2025. https://arxiv.org/abs/2503.08099

    L(M) = Σ_i ‖(M − Δ_i) Δ_iᵀ‖² / ‖Δ_i‖²,    W = W_0 + M
    ∇L   = 2 (M Ḡ − B),    Ḡ = Σ_i Δ_iᵀΔ_i / ‖Δ_i‖²,    B = Σ_i Δ_i Δ_iᵀΔ_i / ‖Δ_i‖²

The rows of Δ_i stand for the inputs of task i. From M = Σ_i Δ_i the authors take 300 steps of
Adam, far from the minimum, which is meant: `solver: closed_form` gives the minimum B Ḡ⁺ itself. A
step is as long as the learning rate whatever the size of the task vectors, so `lr` · `steps` says
how far an element can move. A task vector of zero is left out. Vectors, embeddings and the head
get the mean of the task vectors (the authors': the base).

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([[2.0, 0], [0, 0]]), torch.tensor([[1.0, 0], [0, 3]])
>>> apply("wudi", torch.zeros(2, 2), {"a": a, "b": b}, solver="closed_form")
tensor([[1.9091, 0.0000],
        [0.0000, 3.0000]])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mergepipe.method import Block, Method, Parameters
from mergepipe.spectral import RANK, Embeddings, cut, merge_matrices

if TYPE_CHECKING:
    from torch import Tensor

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    steps: int = Field(300, ge=0, description="steps of Adam")
    lr: float = Field(1e-5, ge=0, description="learning rate of Adam")
    solver: Literal["adam", "closed_form"] = Field(
        "adam", description="some steps towards the minimum, or the minimum"
    )
    embeddings: Embeddings = False


def _solved(deltas: list[Tensor], shared: Shared) -> Tensor:
    import torch

    start = sum(deltas[1:], deltas[0])
    gram, target = start.new_zeros(start.shape[1], start.shape[1]), torch.zeros_like(start)
    for delta in deltas:
        energy = float(delta.square().sum())
        if energy > 0:
            own = delta.mT @ delta / energy
            gram, target = gram + own, target + delta @ own
    if shared.solver == "closed_form":
        inverse: Tensor = torch.linalg.pinv(gram, rtol=RANK**2, hermitian=True)
        return target @ inverse
    return _descended(start, gram, target, shared)


def _descended(merged: Tensor, gram: Tensor, target: Tensor, shared: Shared) -> Tensor:
    """M after some steps of Adam on L."""
    first, second = merged * 0, merged * 0
    for step in range(1, shared.steps + 1):
        gradient = 2 * (merged @ gram - target)
        first = first.lerp_(gradient, 1 - _BETA_1)
        second = second.lerp_(gradient.square_(), 1 - _BETA_2)
        length = (second / (1 - _BETA_2**step)).sqrt_().add_(_EPSILON)
        merged = merged - shared.lr / (1 - _BETA_1**step) * first / length
    return merged


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """W_0 + M."""
    return merge_matrices(block, 1.0, lambda deltas: _solved(deltas, block.shared))


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    cut=cut,
    against="fusion_bench's values",
)
