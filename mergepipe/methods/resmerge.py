"""For experts trained by reinforcement: the consensus of all but each one's strongest direction.

Sun et al., "ResMerge: Residual-based Spectral Merging of Large Language Models", 2026.
https://arxiv.org/abs/2606.02252

    H_i = the top head_rank triplets of Δ_i,    R_i = Δ_i − H_i,    q_i = R_i / ‖R_i‖
    s   = mean of cos(q_i, q_j) over pairs,    q = Σ_i q_i / ‖Σ_i q_i‖,    c = mean of cos(q_i, q)
    β   = beta_max − (beta_max − beta_min) z,    z = ½ ((s+1)/2 + (c+1)/2)
    A   = c^β · mean ‖R_i‖ · q,    C = rho · S · ‖A‖ · H̄ / ‖H̄‖,    W = W_0 + A + C

H̄ is the mean of the H_i and S the mean of max(0, cos(H_i, H_j)). z is 0 outside of attention and
feed-forward matrices, told by name. Where c is no more than chance, 1/√N, A is the mean of the
R_i. Vectors, embeddings and the head get the mean of the task vectors. This is the authors' code,
in fp64.

>>> from mergepipe.method import apply
>>> import torch
>>> a, b = torch.tensor([[4.0, 0], [0, 1]]), torch.tensor([[2.0, 0], [0, 1]])
>>> apply("resmerge", torch.zeros(2, 2), {"a": a, "b": b})
tensor([[0.2000, 0.0000],
        [0.0000, 1.0000]])
"""

from __future__ import annotations

import math
import re
from itertools import combinations
from typing import TYPE_CHECKING

from pydantic import Field

from mergepipe.method import Block, Method, Parameters
from mergepipe.spectral import Embeddings, cut, decompose, merge_matrices

if TYPE_CHECKING:
    from torch import Tensor

_EPSILON = 1e-8
_LAYERS = re.compile(r"(?i)attn|attention|[qkvo]_proj|mlp|ffn|feed_forward|(gate|up|down)_proj")


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    head_rank: int = Field(1, ge=0, description="directions of a task matrix that are its head")
    beta_min: float = Field(0.7, ge=0, description="exponent of c where residuals agree")
    beta_max: float = Field(1.0, ge=0, description="exponent of c elsewhere")
    rho: float = Field(0.2, ge=0, description="norm of the heads' part relative to that of A")
    embeddings: Embeddings = False


def _norm(x: Tensor) -> float:
    return math.sqrt(float(x.square().sum()))


def _cosine(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum()) / (_norm(x) * _norm(y) + _EPSILON)


def _pairs(vectors: list[Tensor], *, least: float) -> float:
    """Mean over pairs of the cosine, or of `least` where that is more; 1 without pairs."""
    cosines = [max(least, _cosine(x, y)) for x, y in combinations(vectors, 2)]
    return sum(cosines) / len(cosines) if cosines else 1.0


def _backbone(residuals: list[Tensor], shared: Shared, *, layer: bool) -> Tensor:
    """A."""
    norms, count = [_norm(r) for r in residuals], len(residuals)
    units = [r / (n + _EPSILON) for r, n in zip(residuals, norms, strict=True)]
    total = sum(units[1:], units[0])
    mean = sum(residuals[1:], residuals[0]) / count
    if _norm(total) <= _EPSILON:
        return mean
    q = total / (_norm(total) + _EPSILON)
    c = min(1.0, max(0.0, sum(_cosine(unit, q) for unit in units) / count))
    if c <= 1 / math.sqrt(count):
        return mean
    z = ((_pairs(units, least=-1.0) + 1) / 2 + (c + 1) / 2) / 2 if layer else 0.0
    beta = shared.beta_max - (shared.beta_max - shared.beta_min) * z
    return q * float(c**beta * sum(norms) / count)


def _correction(heads: list[Tensor], anchor: float, rho: float) -> Tensor:
    """C."""
    mean = sum(heads[1:], heads[0]) / len(heads)
    known = [head for head in heads if _norm(head) > _EPSILON]
    if _norm(mean) <= _EPSILON:
        return mean * 0
    return mean * (rho * _pairs(known, least=0.0) * anchor / _norm(mean))


def merge(block: Block[Each, Shared], _: None) -> Tensor:
    """W_0 + A + C."""
    shared = block.shared

    def rejoined(deltas: list[Tensor]) -> Tensor:
        parts = [decompose(delta) for delta in deltas]
        k = shared.head_rank
        heads = [(u[:, :k] * s[:k]) @ vh[:k] for u, s, vh in parts]
        residuals = [delta - head for delta, head in zip(deltas, heads, strict=True)]
        layer = _LAYERS.search(block.tensor) is not None
        backbone = _backbone(residuals, shared, layer=layer)
        return backbone + _correction(heads, _norm(backbone), shared.rho)

    return merge_matrices(block, 1.0, rejoined)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    cut=cut,
    against="its laws",
)
