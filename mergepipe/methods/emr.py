"""Unify the task vectors: per parameter, the elected sign and the largest magnitude that has it.

Huang et al., "EMR-Merging: Tuning-Free High-Performance Model Merging", NeurIPS 2024.
https://arxiv.org/abs/2405.17461

    s   = sgn(Σ_i τ_i), − for 0
    τ_u = s · max_i {|τ_i| : sgn(τ_i) = s}              (0 where no model has that sign)
    M_i = [sgn(τ_i) = sgn(τ_u)],    λ_i = Σ|τ_i| / Σ|M_i ⊙ τ_u|       (over the model)
    θ   = θ_0 + τ_u,    or for task i    θ_0 + λ_i M_i ⊙ τ_u

The paper keeps τ_u with a mask and a number per task, and makes the model of a task when it is
asked for: mark that model with `task: true`. With none marked, this gives what all share. The
authors' code, and fusion_bench, divide sums of each tensor's mean magnitude (`compat: reference`).

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(3), torch.tensor([1.0, 2.0, -3.0]), torch.tensor([2.0, -1.0, 1.0])
>>> apply("emr", base, {"a": a, "b": b})
tensor([ 2.,  2., -3.])
>>> apply("emr", base, {"a": a, "b": b}, {"b": {"task": True}})
tensor([4., 0., 0.])
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from mergepipe.delta import add_update
from mergepipe.kernels.masks import NO_TASK, add_unified, stitch, task_magnitudes
from mergepipe.method import Block, Method, Parameters, Scope, Statistics, Survey

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    task: bool = Field(False, description="make the model of this one's task")


class Shared(Parameters):
    """For the whole merge."""

    compat: Literal["none", "reference"] = Field("none", description="how λ_i weighs tensors")


def check(each: Sequence[Each], _: Shared) -> None:
    """Refuse two tasks: their masks make two models."""
    if sum(one.task for one in each) > 1:
        raise ValueError("one merge makes the model of one task: mark one with task: true")


def _unified(block: Block[Each, Shared]) -> Tensor:
    """τ_u."""
    deltas = block.deltas
    positive = sum(deltas[1:], deltas[0]) > 0
    unified = deltas[0].new_zeros(())
    for delta in deltas:
        elected = (delta != 0) & ((delta > 0) == positive)
        unified = delta.where(elected & (delta.abs() > unified.abs()), unified)
    return unified


def _masked(block: Block[Each, Shared], task: str) -> Tensor:
    """M_i ⊙ τ_u; 0 everywhere if the model lacks the tensor."""
    unified = _unified(block)
    if task not in block.labels:
        return unified.new_zeros(unified.shape)
    return unified.where(block.deltas[block.labels.index(task)].sign() == unified.sign(), 0.0)


def _magnitudes(task: str, block: Block[Each, Shared]) -> Statistics:
    if task not in block.labels:
        return {}
    if block.packed is not None:
        sums = list(task_magnitudes(block.packed, block.row(task)))
    else:
        delta = block.deltas[block.labels.index(task)]
        sums = [float(x.double().abs().sum()) for x in (delta, _masked(block, task))]
    divisor = max(block.target.numel, 1) if block.shared.compat == "reference" else 1
    return {"magnitudes": np.array(sums) / divisor}


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the task's model, and its λ_i; None where all share one model."""
    task = next((label for label, each in scope.each.items() if each.task), None)
    if task is None:
        return None
    own, masked = map(float, (yield partial(_magnitudes, task)).get("magnitudes", (0.0, 0.0)))
    return task, own / masked if masked else 0.0


def merge(block: Block[Each, Shared], found: tuple[str, float] | None) -> Tensor:
    """θ_0 + τ_u, or what one task needs of it."""
    if found is None:
        return add_update(block.base, _unified(block), 1.0)
    task, scale = found
    return add_update(block.base, _masked(block, task), scale)


def kernel(block: Block[Each, Shared], found: tuple[str, float] | None, out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    if found is None:
        add_unified(block.packed, NO_TASK, 1.0, out)
        return
    task, scale = found
    if task in block.labels:
        add_unified(block.packed, block.row(task), scale, out)
    else:
        stitch(block.packed, [], out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey,
    scope=lambda each, shared: (each.task, shared.compat),
    check=check,
    sweeps=lambda _: 1,
    kernel=kernel,
    against="its formula in numpy",
)
