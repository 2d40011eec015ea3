"""Weigh each column of a task vector by how much the model changed it, in length and direction.

Yu et al., "Extend Model Merging from Fine-Tuned to Pre-Trained Large Language Models via Weight
Disentanglement", 2024. https://arxiv.org/abs/2408.03092

    Δm_i[j] = |‖θ_i[:,j]‖ − ‖θ_0[:,j]‖|,   Δd_i[j] = 1 − cos(θ_i[:,j], θ_0[:,j])
    r_i[j]  = p/C where model i's difference of column j is the p-th smallest of C, from 0
    a_i[j]  = s where r_i[j] > t·mean(r_i), else exp r_i[j] / Σ_k exp r_k[j]
    θ[:,j]  = θ_0[:,j] + Σ_i ½(a_i[j] of Δm + a_i[j] of Δd) τ_i[:,j]

Ranks make a pretrained model's large changes and a fine-tune's small ones count alike. Of an
embedding the rows (tokens) are scored; of stacked matrices each by itself. Vectors have no
columns: there r_i is |τ_i| itself. Equal differences rank by position. A column of zeros differs
by 1 in direction from any other column, by 0 from another of zeros.

Norms and cosines are fp64. The authors' are fp32, in which 1 − cos is mostly noise for changes
below 1 % (`compat: reference` rounds them so, and ranks columns of zeros last, as the authors' NaN
does). A model that left a tensor as it was still takes its share of the softmax, as theirs does;
`drop_unchanged` leaves it out there.

>>> from mergepipe.method import apply
>>> import torch
>>> base = torch.ones(2, 2)
>>> a, b = torch.tensor([[2.0, 4.0], [1.0, 1.0]]), torch.tensor([[1.0, 2.0], [1.0, 1.0]])
>>> apply("widen", base, {"a": a, "b": b})
tensor([[1.5000, 5.0000],
        [1.0000, 1.0000]])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mergepipe.delta import add_update
from mergepipe.kernels.columns import add_by_score
from mergepipe.kernels.tiles import store
from mergepipe.method import Block, Cut, Method, Parameters, Scope, Survey, Target
from mergepipe.widen import by_row, score_tensors, survey_scores, vector_parts

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""


class Shared(Parameters):
    """For the whole merge."""

    t: float = Field(
        1.0, description="how far above the mean a rank is calibrated, as its multiple"
    )
    s: float = Field(1.0, description="score of what is calibrated")
    compat: Literal["none", "reference"] = Field(
        "none", description="fp64 differences, or fp32 ones as in the authors' code"
    )
    drop_unchanged: bool = Field(
        default=False, description="leave models that did not change a matrix out of its softmax"
    )


def cut(_shared: Shared, target: Target) -> Cut:
    """Ask for whole rows of matrices."""
    return "anywhere" if target.matrix is None else "rows"


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the scores, or what they are computed from element by element."""
    return (yield from survey_scores(max(scope.sizes.values()), scope.shared))


def merge(block: Block[Each, Shared], found: NDArray[Any]) -> Tensor:
    """θ_0 + Σ_i a_i τ_i."""
    if block.target.matrix is None:
        import torch

        assert block.base is not None, "task vectors need a base"
        weighted = [
            torch.from_numpy(x).to(block.base.device) for x in vector_parts(block, found)[1]
        ]
    else:
        scores = score_tensors(block, found)
        shape = (-1, max(block.target.columns, 1))
        pairs = zip(block.deltas, scores, strict=True)
        weighted = [(delta.reshape(shape) * score).flatten() for delta, score in pairs]
    return add_update(block.base, sum(weighted[1:], weighted[0]), 1.0)


def kernel(block: Block[Each, Shared], found: NDArray[Any], out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    matrix = block.target.matrix
    if matrix is not None:
        rows = by_row(block.target)
        add_by_score(block.packed, found, block.start, matrix, by_row=rows, out=out)
        return
    base, weighted = vector_parts(block, found)
    with np.errstate(all="ignore"):
        update = sum(weighted[1:], weighted[0])
        store(np.where(update == 0, base, base + update), out.kind, out.data, 0)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey,
    sweeps=lambda _: 1,
    cut=cut,
    kernel=kernel,
    against="MergeLLM's values; a rewrite in fp64",
)
