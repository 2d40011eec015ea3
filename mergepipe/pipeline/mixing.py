"""mergekit-moe's configuration -> everything known before the result is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mergepipe.checkpoint import open_checkpoint
from mergepipe.errors import Problems
from mergepipe.execute import Resources, as_device, default_memory, share_out
from mergepipe.moe import Router, choose, plan_mixture, read_mixture
from mergepipe.pipeline.preparing import Prepared
from mergepipe.recipe import override, read_document

__all__ = ["prepare_moe"]


def prepare_moe(
    file: Path,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    resources: Resources | None = None,
    local_files_only: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Prepared:
    """Read a mixture of experts and the headers of its models, and plan it.

    With `tell`, which is given messages, the gates are worked out as well, to warn of those that
    are nearly alike; otherwise that waits until they are written.

    Raises
    ------
    InputError
        with every fault of the configuration, the models and the prompts at once.
    EnvironmentFault
        if the memory that may be used is not enough for one tensor.

    """
    resources = resources or Resources()
    if resources.max_memory is None:
        resources = replace(resources, max_memory=default_memory())
    if resources.device is not None:
        as_device(resources.device)
    problems = Problems()
    mixture = read_mixture(override(read_document(file), settings), problems)
    sources = {} if mixture is None else mixture.recipe.sources
    opened = {
        label: open_checkpoint(source, problems, local_files_only=local_files_only)
        for label, source in sources.items()
    }
    problems.raise_any()
    assert mixture is not None, "a mixture without problems"
    checkpoints = {label: found for label, found in opened.items() if found is not None}
    target = choose(mixture, checkpoints, problems)
    problems.raise_any()
    assert target is not None, "an architecture that fits"
    router = Router.of(mixture, checkpoints[mixture.base], resources.device, problems)
    plan = plan_mixture(mixture, target, checkpoints, router, problems)
    problems.raise_any()
    ...
