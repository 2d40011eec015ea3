"""The definition of every method, in memory: one tensor merged in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergepipe.errors import Problems, did_you_mean
from mergepipe.method.blocks import (
    BLOCK,
    Block,
    Role,
    Scope,
    Target,
    add_statistics,
    block_ranges,
    measure_blocks,
    run_survey,
    strictest,
)
from mergepipe.method.kinds import Method, load_method, load_post_step

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["apply"]


def apply(
    name: str,
    base: Tensor | None,
    models: Mapping[str, Tensor],
    each: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    tensor: str = "tensor",
    role: Role = "other",
    then: Sequence[tuple[str, Mapping[str, Any]]] = (),
    seed: int = 0,
    block: int = BLOCK,
    **shared: Any,
) -> Tensor:
    """Merge one tensor: the definition of every method, in memory.

    `base` and `models` have one shape and any float dtype; the result has that shape, fp32.
    `each` gives per-model parameters by label, keywords are shared parameters (`lambda` as
    `lambda_`), `then` post-steps and their parameters.

    >>> import torch
    >>> base, a, b = torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0])
    >>> apply("task_arithmetic", base, {"a": a, "b": b}, lambda_=0.5)
    tensor([ 2., -1.])

    Raises
    ------
    InputError
        if the method takes another number of models or needs a base, a label in `each` is not
        in `models`, or shapes differ.

    """
    import torch

    method = load_method(name)
    each = each or {}
    _check_call(method, base, models, each)
    labels = tuple(models)
    chosen = tuple(method.each(**each.get(label, {})) for label in labels)
    common = method.shared(**shared)
    method.check(chosen, common)
    flat = [models[label].to(torch.float32).flatten() for label in labels]
    origin = None if base is None else base.to(torch.float32).flatten()
    target = Target(tensor, tuple(next(iter(models.values())).shape), role)
    posts = [(load_post_step(post), values) for post, values in then]
    calls = [(method, chosen, common)]
    calls += [(post, tuple(post.each() for _ in labels), post.shared(**v)) for post, v in posts]
    cut = strictest((one.cut(values, target) for one, _, values in calls), target)
    blocks = [
        Block(
            target=target,
            start=start,
            base=None if origin is None else origin[start:stop],
            models=tuple(model[start:stop] for model in flat),
            labels=labels,
            each=chosen,
            shared=common,
            seed=seed,
        )
        for start, stop in block_ranges(target, cut, block)
    ]
    merged: list[Tensor] = []
    for one, parameters, values in calls:
        merged = _called(one, [replace(part, each=parameters, shared=values) for part in blocks])
        blocks = [replace(part, merged=done) for part, done in zip(blocks, merged, strict=True)]
    return torch.cat(merged).reshape(target.shape)


def _called(method: Method[Any, Any], blocks: Sequence[Block[Any, Any]]) -> list[Tensor]:
    """Merge the blocks of one tensor, after the method's survey of them."""
    first, found = blocks[0], None
    if method.survey is not None:
        each = dict(zip(first.labels, first.each, strict=True))
        sizes = dict.fromkeys(first.labels, first.target.numel)
        scope = Scope(sizes, each, first.shared, (first.target,))
        found = run_survey(
            method.survey(scope), lambda measure: add_statistics(measure_blocks(measure, blocks))
        )
    return [method.merge(part, found) for part in blocks]


def _check_call(
    method: Method[Any, Any],
    base: Tensor | None,
    models: Mapping[str, Tensor],
    each: Mapping[str, object],
) -> None:
    problems = Problems()
    fewest, most = method.models
    if len(models) < fewest or (most is not None and len(models) > most):
        takes = f"at least {fewest}" if most is None else f"{fewest} to {most}"
        problems.add(method.name, f"takes {takes} models beside the base, got {len(models)}")
    if method.needs_base and base is None:
        problems.add(method.name, "needs a base")
    for label in each:
        if label not in models:
            problems.add(method.name, f"unknown model '{label}'{did_you_mean(label, models)}")
    inputs = models.values() if base is None else (base, *models.values())
    shapes = tuple(dict.fromkeys(tuple(one.shape) for one in inputs))
    if len(shapes) > 1:
        problems.add(method.name, f"tensors of different shapes: {', '.join(map(str, shapes))}")
    problems.raise_any()
