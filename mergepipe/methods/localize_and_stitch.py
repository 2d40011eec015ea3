"""Keep the largest elements of each task vector, average them where they overlap.

He et al., "Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic", TMLR 2025.
https://arxiv.org/abs/2408.13656

    m_i = the k largest of |τ_i|, without zeros,    k = max(1, ⌊density·n⌋)
    θ   = θ_0 + Σ_i m_i ⊙ τ_i / Σ_j m_j

The dataless variant: the paper's other one trains the masks. Elements are sought over the whole
model (`scope: model`); embeddings and the output head stay the base's and do not count, as in
MergeBench (`embeddings: true` merges them; the authors leave out embeddings alone). The authors
keep 5 % of a language model, those above the k-th; MergeBench 10 %, and where three models
overlap, it divides by 2.

>>> from mergepipe.method import apply
>>> import torch
>>> base, a, b = torch.zeros(4), torch.tensor([4.0, 1, -2, 1]), torch.tensor([2.0, 1, 1, -3])
>>> each = {"a": {"density": 0.5}, "b": {"density": 0.5}}
>>> apply("localize_and_stitch", base, {"a": a, "b": b}, each)
tensor([ 3.,  0., -2., -3.])
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mergepipe.delta import add_update, combine
from mergepipe.kernels.masks import stitch
from mergepipe.method import (
    BLOCK,
    Block,
    Measure,
    Method,
    Parameters,
    Sampled,
    Scope,
    Statistics,
    Survey,
    Target,
)
from mergepipe.trim import LARGEST_SWEEPS, Trim, band, keep_count, keep_largest, survey_largest

if TYPE_CHECKING:
    from torch import Tensor

    from mergepipe.kernels.packed import Out


class Each(Parameters):
    """Per model."""

    density: float = Field(0.1, ge=0, le=1, description="fraction of the scope that is kept")


class Shared(Parameters):
    """For the whole merge."""

    scope: Literal["model", "tensor"] = Field("model", description="where the largest are sought")
    embeddings: bool = Field(False, description="merge embeddings and the output head, too")


def scope(each: Each, shared: Shared) -> Hashable | None:
    """One scope per tensor, or one for all tensors where a model has the same density."""
    return None if shared.scope == "tensor" else (each.density, shared.embeddings)


def _merged(target: Target, shared: Shared) -> bool:
    return shared.embeddings or target.role == "other"


def _sizes(block: Block[Each, Shared]) -> Statistics:
    """Elements of the tensor, for each model that has it."""
    first = block.start == 0 and _merged(block.target, block.shared)
    return dict.fromkeys(block.labels, block.target.numel if first else 0)


def _skipping(measure: Measure, block: Block[Each, Shared]) -> Statistics:
    return measure(block) if _merged(block.target, block.shared) else {}


def _only_merged(measure: Measure) -> Measure:
    if isinstance(measure, Sampled):
        return replace(measure, measure=partial(_skipping, measure.measure))
    return partial(_skipping, measure)


def _over_merged(survey: Survey) -> Survey:
    """Let a survey see only the tensors that are merged."""
    try:
        measure = next(survey)
        while True:
            measure = survey.send((yield _only_merged(measure)))
    except StopIteration as stop:
        return stop.value


def survey(scope: Scope[Each, Shared]) -> Survey:
    """Find the elements that stay."""
    sizes = scope.sizes
    if not all(_merged(target, scope.shared) for target in scope.targets):
        counted = yield Sampled(_sizes, 1 / BLOCK)
        sizes = {label: counted[label] for label in scope.sizes}
    counts = {label: keep_count(scope.each[label].density, n) for label, n in sizes.items()}
    return (yield from _over_merged(survey_largest(sizes, counts)))


def merge(block: Block[Each, Shared], trims: Mapping[str, Trim]) -> Tensor:
    """Average what is kept, add."""
    assert block.base is not None, "localize_and_stitch needs a base"
    if not _merged(block.target, block.shared):
        return block.base
    kept = keep_largest(block, trims)
    masks = [delta != 0 for delta in kept]
    return add_update(block.base, combine(kept, [1.0] * len(kept), masks, normalize=True), 1.0)


def kernel(block: Block[Each, Shared], trims: Mapping[str, Trim], out: Out) -> None:
    """Do the same with a packed block."""
    assert block.packed is not None, "kernels take packed blocks"
    merged = _merged(block.target, block.shared)
    stitch(block.packed, [band(block, trims[x]) for x in block.labels] if merged else [], out)


METHOD = Method(
    Each,
    Shared,
    merge,
    needs_base=True,
    models=(1, None),
    survey=survey,
    scope=scope,
    sweeps=lambda _: 1 + LARGEST_SWEEPS,
    kernel=kernel,
    against="its formula in numpy",
)
