"""Plans -> a checkpoint in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mergepipe.errors import EnvironmentFault, InputError, Problem, Problems
from mergepipe.execute import Progress, execute
from mergepipe.pipeline.preparing import Prepared, stage_folder
from mergepipe.plan import Plan
from mergepipe.write import FileSink, check_target, new_folder, write_companions

__all__ = ["Outcome", "Report", "execute_plan", "merge"]

Report: TypeAlias = Callable[[Plan], Progress]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left behind."""

    folder: Path
    tensors: int
    parameters: int
    warnings: tuple[str, ...]


def merge(prepared: Prepared, *, overwrite: bool = False, report: Report | None = None) -> Outcome:
    """Make the checkpoint of a prepared recipe.

    `report(plan)` gives a progress callback for each stage.

    Raises
    ------
    InputError, EnvironmentFault
        if the target cannot be written, an input is not finite, or a file cannot be read; the
        target is then as it was.

    """
    target = prepared.target
    if target is None:
        raise InputError(Problem("output.path", "no output folder", "set it, or give --out DIR"))
    check_target(target, overwrite=overwrite)
    _check_space(target, prepared.disk_bytes)
    problems = Problems(warnings=list(prepared.warnings))
    *before, result = prepared.plans
    stages = stage_folder(target)
    with new_folder(target, overwrite=overwrite) as folder, _temporary(stages):
        for plan in before:
            execute_plan(plan, stages / plan.name, prepared.threads, report)
        execute_plan(result, folder, prepared.threads, report)
        _write_companions(prepared, folder, problems)
    return Outcome(
        folder=target,
        tensors=len(result.steps),
        parameters=sum(step.numel for step in result.steps),
        warnings=tuple(problems.warnings[len(prepared.warnings) :]),
    )


@contextmanager
def _temporary(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def execute_plan(plan: Plan, folder: Path, threads: int, report: Report | None) -> None:
    """Write the shards of one plan to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = report(plan) if report is not None else None
    with FileSink(folder, plan.layout) as sink:
        execute(plan, sink, threads=threads, progress=progress)


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise EnvironmentFault(
            Problem(
                str(target),
                f"not enough disk: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free",
                "free some space, or choose another disk by --out",
            )
        )


def _write_companions(prepared: Prepared, folder: Path, problems: Problems) -> None:
    recipe, donor = prepared.recipe, prepared.plans[-1].donor
    folders = {label: checkpoint.folder for label, checkpoint in prepared.checkpoints.items()}
    tokenizer = folders[recipe.tokenizer] if recipe.tokenizer else donor.folder
    write_companions(
        folder,
        config=folders[recipe.output.config] if recipe.output.config else donor.folder,
        tokenizer=tokenizer,
        chat_template=folders[recipe.chat_template] if recipe.chat_template else tokenizer,
        dtype=recipe.output.dtype,
        problems=problems,
    )
