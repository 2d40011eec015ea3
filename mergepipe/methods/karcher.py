"""Average models on the sphere: the direction nearest to all of theirs, at their mean length.

Karcher, "Riemannian center of mass and mollifier smoothing", CPAM 1977; of models: Wang, Ye and
Yin, "Functionality-Oriented LLM Merging on the Fisher-Rao Manifold", 2026.
https://arxiv.org/abs/2603.04972

    u_i = θ_i / r_i,    r_i = ‖θ_i‖,    φ_i = arccos ⟨m, u_i⟩
    T = 1/N Σ_i φ_i / sin φ_i · (u_i − ⟨m, u_i⟩ m)
    m ← cos ‖T‖ · m + sin ‖T‖ · T / ‖T‖        until ‖T‖ < tol,   θ = (1/N Σ_i r_i) m

Each tensor is one vector. m begins as the direction of Σ_i u_i and stays in the span of the u_i,
so inner products in fp64, found once, carry the whole iteration. A base takes no part: list it
under `models` if it should. Models no longer than `tol` have no direction and count only for the
length; where none has one, the plain average is taken (mergekit: zeros). A model opposite to m,
φ_i within 1e-4 of π, pulls nowhere.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
>>> apply("karcher", None, {"a": a, "b": b})
tensor([1.4142, 1.4142])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.gram import (
    Gram,
    add_weighted,
    add_weighted_packed,
    norm_of_sum,
    norms,
    survey_gram,
)
from mergepipe.method import Block, Method, Parameters, Scope, Survey

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out

_OPPOSITE = math.pi - 1e-4


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    max_iter: int = Field(10, ge=0, description="steps towards the mean, at most")
    tol: float = Field(1e-5, gt=0, le=1, description="steps and vectors shorter than this are 0")


def _unit(cosines: Gram, coefficients: Sequence[float]) -> list[float]:
    length = norm_of_sum(cosines, coefficients)
    return [c / length for c in coefficients]


def _mean(cosines: Gram, max_iter: int, tol: float) -> list[float]:
    """Coefficients of m in unit vectors with these inner products."""
    count = len(cosines)
    mean = [1 / count] * count
    if norm_of_sum(cosines, mean) < tol:
        mean = [1.0] + [0.0] * (count - 1)
    mean = _unit(cosines, mean)
    for _ in range(max_iter):
        tangent = _tangent(cosines, mean, tol)
        step = norm_of_sum(cosines, tangent)
        if step < tol:
            break
        turn = math.sin(step) / step
        moved = [math.cos(step) * c + turn * t for c, t in zip(mean, tangent, strict=True)]
        mean = _unit(cosines, moved)
    return mean


def _tangent(cosines: Gram, mean: Sequence[float], tol: float) -> list[float]:
    """Coefficients of T."""
    tangent = [0.0] * len(mean)
    for i, row in enumerate(cosines):
        cosine = sum(c * g for c, g in zip(mean, row, strict=True))
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        if tol <= angle <= _OPPOSITE:
            pull = angle / math.sin(angle) / len(mean)
            tangent = [t - pull * cosine * c for t, c in zip(tangent, mean, strict=True)]
            tangent[i] += pull
    return tangent


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the models' coefficients from norms and inner products."""
    gram = yield from survey_gram(len(scope.each), ignore_base=True)
    lengths = norms(gram)
    valid = [i for i, length in enumerate(lengths) if length > scope.shared.tol]
    if not valid:
        return (1 / len(lengths),) * len(lengths)
    cosines = [[gram[i][j] / (lengths[i] * lengths[j]) for j in valid] for i in valid]
    mean = _mean(cosines, scope.shared.max_iter, scope.shared.tol)
    scale = sum(lengths) / len(lengths)
    found = [0.0] * len(lengths)
    for i, c in zip(valid, mean, strict=True):
        found[i] = scale * c / lengths[i]
    return tuple(found)


def merge(block: Block[Each, Shared], coefficients: tuple[float, ...]) -> Tensor:
    """Σ_i c_i θ_i."""
    return add_weighted(replace(block, base=None), coefficients)


def kernel(block: Block[Each, Shared], coefficients: tuple[float, ...], out: Out) -> None:
    """Do the same with a packed block."""
    add_weighted_packed(block, coefficients, out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=False,
    models=(1, None),
    survey=survey,
    sweeps=lambda _: 1,
    kernel=kernel,
    against="mergekit 0.1.5",
)
