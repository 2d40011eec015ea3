"""From a recipe to a checkpoint: the only module that knows every stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from mergepipe.checkpoint import Checkpoint, open_checkpoint
from mergepipe.errors import EnvironmentFault, InputError, Problem, Problems
from mergepipe.evaluate import Evaluation, ScoreRow, parse_evaluation, score
from mergepipe.execute import Progress, default_threads, execute
from mergepipe.model import Model
from mergepipe.plan import Plan, make_plan
from mergepipe.recipe import (
    EvaluationSpec,
    MergeSpec,
    Recipe,
    override,
    parse,
    parse_evaluations,
    parse_models,
    read_document,
)
from mergepipe.write import FileSink, check_target, new_folder, write_companions

__all__ = ["Outcome", "Prepared", "evaluate_result", "merge", "prepare"]

Report: TypeAlias = Callable[[Plan], Progress]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe that can be run: its models are there, and every tensor has a place."""

    recipe: Recipe
    checkpoints: Mapping[str, Checkpoint]
    plans: tuple[Plan, ...]  # one a stage, in order; the last one is the result
    evaluations: tuple[Evaluation, ...]
    target: Path | None
    threads: int
    warnings: tuple[str, ...] = field(default=())

    @property
    def disk_bytes(self) -> int:
        """Bytes of disk needed: the result, and stages before it while it is made."""
        return sum(plan.bytes_written for plan in self.plans)

    @property
    def peak_bytes(self) -> int:
        """Memory needed beside the interpreter and libraries, about."""
        return max(plan.peak_bytes(self.threads) for plan in self.plans)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left behind."""

    folder: Path
    tensors: int
    parameters: int
    warnings: tuple[str, ...]


def prepare(
    file: Path,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    threads: int | None = None,
    local_files_only: bool = False,
) -> Prepared:
    """Read a recipe and the headers of its models, and plan everything.

    `settings` are `field=value` overrides. No weight is read and nothing is written.

    Raises
    ------
    InputError
        with every fault of the recipe, configurations, indexes and headers at once.

    """
    problems = Problems()
    document = override(read_document(file), settings)
    recipe = parse(document, problems)
    sources = recipe.sources if recipe is not None else parse_models(document)
    specs = recipe.evaluations if recipe is not None else parse_evaluations(document)
    opened = {
        label: open_checkpoint(source, problems, local_files_only=local_files_only)
        for label, source in sources.items()
    }
    evaluations = _evaluations(specs, document.folder, problems)
    problems.raise_any()
    assert recipe is not None, "a recipe without problems"
    checkpoints = {label: found for label, found in opened.items() if found is not None}
    target = _named(out or recipe.output.path)
    plans = _plans(recipe, checkpoints, _stage_folder(target), problems)
    problems.raise_any()
    if target is not None:
        _check_apart(target, checkpoints)
    return Prepared(
        recipe=recipe,
        checkpoints=checkpoints,
        plans=plans,
        evaluations=evaluations,
        target=target,
        threads=threads or default_threads(),
        warnings=tuple(problems.warnings),
    )


def _evaluations(
    specs: Sequence[EvaluationSpec], folder: Path, problems: Problems
) -> tuple[Evaluation, ...]:
    found = (
        parse_evaluation(
            spec.use,
            spec.parameters,
            name=spec.name,
            base_dir=folder,
            where=spec.place,
            problems=problems,
        )
        for spec in specs
    )
    return tuple(one for one in found if one is not None)


def _named(target: Path | None) -> Path | None:
    """Give the target with a name of its own, where it is said as `.` or `..`."""
    if target is None or target.name not in {"", ".."}:
        return target
    found = target.resolve()
    if not found.name:
        raise InputError(Problem(str(target), "cannot be the output", "give a folder inside it"))
    return found


def _stage_folder(target: Path | None) -> Path:
    """Where the results of stages before the last are kept while the last one is made."""
    return Path("stages") if target is None else target.with_name(f".{target.name}.stages")


def _plans(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], stages: Path, problems: Problems
) -> tuple[Plan, ...]:
    """Plan the stages in order; a later one sees an earlier one's planned output as a model.

    Stages before the last are stored as fp32, so that values are rounded once.
    """
    known = dict(checkpoints)
    plans = []
    for name, spec in recipe.merges.items():
        last = name == recipe.result
        plan = make_plan(
            name,
            spec,
            known,
            problems,
            seed=recipe.seed,
            dtype=recipe.output.dtype if last else "float32",
            like=_origin(recipe, spec, checkpoints),
            max_shard_bytes=recipe.output.max_shard_bytes,
        )
        if plan is None:
            break
        known[name] = plan.as_checkpoint(stages / name)
        plans.append(plan)
    return tuple(plans)


def _origin(
    recipe: Recipe, spec: MergeSpec, checkpoints: Mapping[str, Checkpoint]
) -> Checkpoint | None:
    """Follow a merge's donor back through stages to the model that it comes from."""
    while spec.donor in recipe.merges:
        spec = recipe.merges[spec.donor]
    return checkpoints.get(spec.donor)


def _check_apart(target: Path, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Refuse an output that is an input, or lies in one, or has one inside."""
    ours = target.resolve()
    for label, checkpoint in checkpoints.items():
        theirs = checkpoint.folder.resolve()
        if ours == theirs or ours in theirs.parents or theirs in ours.parents:
            raise InputError(
                Problem(
                    str(target),
                    f"the output and the model '{label}' share a folder",
                    "write the output elsewhere",
                )
            )


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
    stages = _stage_folder(target)
    with new_folder(target, overwrite=overwrite) as folder, _temporary(stages):
        for plan in before:
            _execute(plan, stages / plan.name, prepared.threads, report)
        _execute(result, folder, prepared.threads, report)
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


def _execute(plan: Plan, folder: Path, threads: int, report: Report | None) -> None:
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


def evaluate_result(
    prepared: Prepared, outcome: Outcome, *, notice: Callable[[str], None]
) -> tuple[ScoreRow, ...]:
    """Score every model of the recipe and the result on `evaluate:`, on the CPU in fp32.

    `notice` is told the name of each model as its turn comes.
    """
    with TemporaryDirectory(prefix="mergepipe-") as scratch:
        models = _askable(prepared, outcome, Path(scratch), notice)
        return score(models, prepared.evaluations)


def _askable(
    prepared: Prepared, outcome: Outcome, scratch: Path, notice: Callable[[str], None]
) -> Iterator[Model]:
    """Load the models one after the other; only one is in memory."""
    from mergepipe.model.load import local_model  # noqa: PLC0415 (transformers is slow to import)

    for label, checkpoint in prepared.checkpoints.items():
        notice(label)
        folder = checkpoint.folder
        if checkpoint.low_rank or checkpoint.source.adapter or checkpoint.source.adapter_hub:
            folder = _applied(checkpoint, scratch / label, prepared.threads)
        yield local_model(folder, label)
    name = prepared.recipe.result
    notice(name)
    yield local_model(outcome.folder, "merged" if name == "merge" else name)


def _applied(checkpoint: Checkpoint, folder: Path, threads: int) -> Path:
    """Write a model with its adapter applied, so that it can be loaded."""
    label, problems = checkpoint.label, Problems()
    spec = MergeSpec(label, "linear", None, (label,), {label: {}}, {}, ())
    plan = make_plan(label, spec, {label: checkpoint}, problems)
    problems.raise_any()
    assert plan is not None, "a model fits itself"
    _execute(plan, folder, threads, None)
    write_companions(
        folder,
        config=checkpoint.folder,
        tokenizer=checkpoint.folder,
        chat_template=checkpoint.folder,
        dtype=None,
        problems=problems,
    )
    return folder
