"""Weighted average of the models' parameters (model soup).

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", ICML 2022. https://arxiv.org/abs/2203.05482

    θ = Σ_i w_i θ_i / Σ_i w_i        (the division only with `normalize`)

All tensors are treated alike. A base, where the recipe names one, gives the configuration and the
tokenizer but takes no part in the average: list it under `models` if it should.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
>>> apply("linear", None, {"a": a, "b": b}, {"b": {"weight": 3.0}})
tensor([2.5000, 5.0000])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.delta import NO_WEIGHT, divide
from mergepipe.kernels.fused import weighted_sum
from mergepipe.method import Block, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    weight: float = Field(1.0, description="share of the model; only ratios matter if normalized")


class Shared(Parameters):
    """For the whole merge."""

    normalize: bool = Field(True, description="divide by the sum of the weights")


def check(each: Sequence[Each], shared: Shared) -> None:
    """Refuse weights that cannot be normalised."""
    if shared.normalize and abs(sum(one.weight for one in each)) < NO_WEIGHT:
        raise ValueError("the weights sum to zero, so `normalize: true` would divide by zero")


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """Σ_i w_i θ_i, in the order of the recipe, divided once at the end."""
    total = block.models[0] * block.each[0].weight
    for model, each in zip(block.models[1:], block.each[1:], strict=True):
        total = total + model * each.weight
    return divide(total, _share(block)) if block.shared.normalize else total


def _share(block: Block[Each, Shared]) -> float:
    return sum(each.weight for each in block.each)


def kernel(block: Block[Each, Shared], _: None, out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    divisor = _share(block) if block.shared.normalize else None
    weighted_sum(block.packed, [each.weight for each in block.each], divisor, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=False,
    models=(1, None),
    check=check,
    kernel=kernel,
    against="mergekit 0.1.5",
)
