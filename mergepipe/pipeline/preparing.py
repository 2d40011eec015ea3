"""Recipe -> everything known before a weight is read: models opened, stages planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergepipe.checkpoint import Checkpoint, open_checkpoint
from mergepipe.dialect import ON_TASK_VECTORS, convert, is_mergekit
from mergepipe.errors import InputError, Problem, Problems
from mergepipe.evaluate import Evaluation, parse_evaluation
from mergepipe.execute import Budget, Resources, as_device, default_memory, share_out
from mergepipe.plan import Plan, make_plan
from mergepipe.plugins import load_plugins
from mergepipe.recipe import (
    Document,
    EvaluationSpec,
    MergeSpec,
    Recipe,
    has_several,
    override,
    parse,
    parse_evaluations,
    parse_models,
    read_document,
    read_documents,
)
from mergepipe.write import STAGES, partial_folder

__all__ = [
    "Prepared",
    "check_apart",
    "check_recipe",
    "find_evaluations",
    "named_target",
    "prepare",
    "read_recipe",
    "settled",
    "stage_folder",
]


_COMPAT_HINT = "; --compat mergekit-0.1.4 merges the rows of the vocabulary that they share"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe that can be run: its models are there, and every tensor has a place."""

    recipe: Recipe
    checkpoints: Mapping[str, Checkpoint]
    plans: tuple[Plan, ...]  # one a stage, in order; the last one is the result
    evaluations: tuple[Evaluation, ...]
    target: Path | None
    resources: Resources
    budget: Budget
    warnings: tuple[str, ...] = field(default=())
    plugins: Mapping[str, str] = field(default_factory=dict)  # file name -> digest

    @property
    def disk_bytes(self) -> int:
        """Bytes of disk needed: the result, and stages before it while it is made."""
        return sum(plan.bytes_written for plan in self.plans)

    @property
    def peak_bytes(self) -> int:
        """Memory needed beside the interpreter and libraries, about."""
        return max(plan.peak_bytes(self.budget.workers) for plan in self.plans)

    @property
    def threads(self) -> int:
        """Workers at the same time."""
        return self.budget.workers


def prepare(
    file: Path,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    resources: Resources | None = None,
    local_files_only: bool = False,
    plugins: Sequence[Path] = (),
    compat: str | None = None,
) -> Prepared:
    """Read a recipe and the headers of its models, and plan everything.

    `settings` are `field=value` overrides, `plugins` files of merge methods, which are run, and
    `compat` sets the recipe's field of that name. No weight is read and nothing is written.

    Raises
    ------
    InputError
        with every fault of the recipe, configurations, indexes and headers at once.
    EnvironmentFault
        if the memory that may be used is not enough for one tensor.

    """
    resources = settled(resources)
    digests = load_plugins(plugins)
    problems = Problems()
    document = read_recipe(file, problems, settings, compat=compat)
    recipe = parse(document, problems)
    sources = recipe.sources if recipe is not None else parse_models(document)
    specs = recipe.evaluations if recipe is not None else parse_evaluations(document)
    opened = {
        label: open_checkpoint(source, problems, local_files_only=local_files_only)
        for label, source in sources.items()
    }
    evaluations = find_evaluations(specs, document.folder, problems)
    problems.raise_any()
    assert recipe is not None, "a recipe without problems"
    checkpoints = {label: found for label, found in opened.items() if found is not None}
    target = named_target(out or recipe.output.path)
    hint = _COMPAT_HINT if document.origins and recipe.compat is None else ""
    plans = _plans(recipe, checkpoints, stage_folder(target), problems, hint)
    _check_bare(recipe, checkpoints, problems)
    problems.raise_any()
    if target is not None:
        check_apart(target, checkpoints)
    return Prepared(
        recipe=recipe,
        checkpoints=checkpoints,
        plans=plans,
        evaluations=evaluations,
        target=target,
        resources=resources,
        budget=share_out(plans, resources.threads, resources.max_memory),
        warnings=tuple(problems.warnings),
        plugins=digests,
    )


def read_recipe(
    file: Path,
    problems: Problems,
    settings: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    compat: str | None = None,
) -> Document:
    """Read a recipe, or a configuration of mergekit as the recipe that it means."""
    load_plugins(plugins)
    document = override(_read(file), settings)
    data = document.data
    if is_mergekit(data) or (isinstance(data, list) and any(map(is_mergekit, data))):
        document = convert(document, problems)
        problems.raise_any()  # what follows would speak of parts that nobody wrote
    return override(document, [f"compat={compat}"] if compat else [])


def check_recipe(
    file: Path, problems: Problems, plugins: Sequence[Path] = (), compat: str | None = None
) -> None:
    """Find what can be said of a recipe without its models."""
    parse(read_recipe(file, problems, plugins=plugins, compat=compat), problems)


def _read(file: Path) -> Document:
    if has_several(file):
        document = read_documents(file)
        if all(map(is_mergekit, document.data)):
            return document
    return read_document(file)


def settled(resources: Resources | None) -> Resources:
    """Decide once how much memory there is, which changes while a run goes on; check the device."""
    chosen = resources or Resources()
    if chosen.device is not None:
        as_device(chosen.device)
    if chosen.max_memory is not None:
        return chosen
    return replace(chosen, max_memory=default_memory())


def find_evaluations(
    specs: Sequence[EvaluationSpec], folder: Path, problems: Problems
) -> tuple[Evaluation, ...]:
    """Check the entries of `evaluate:`, each by its evaluator."""
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


def named_target(target: Path | None) -> Path | None:
    """Give the target with a name of its own, where it is said as `.` or `..`."""
    if target is None or target.name not in {"", ".."}:
        return target
    found = target.resolve()
    if not found.name:
        raise InputError(Problem(str(target), "cannot be the output", "give a folder inside it"))
    return found


def stage_folder(target: Path | None) -> Path:
    """Where the results of stages before the last are kept while the last one is made."""
    return Path(STAGES) if target is None else partial_folder(target) / STAGES


def _plans(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    stages: Path,
    problems: Problems,
    hint: str,
) -> tuple[Plan, ...]:
    """Plan the stages in order; a later one sees an earlier one's planned output as a model.

    Stages before the last are stored as fp32, so that values are rounded once.
    """
    known = dict(checkpoints)
    plans = []
    for name, spec in recipe.merges.items():
        last = recipe.compares or name == recipe.result
        plan = make_plan(
            name,
            spec,
            known,
            problems,
            seed=recipe.seed,
            dtype=recipe.output.dtype if last else "float32",
            like=_origin(recipe, spec, checkpoints),
            tokenizer=known.get(recipe.tokenizer or "") if last else None,
            max_shard_bytes=recipe.output.max_shard_bytes,
            nan_policy=recipe.nan_policy,
            compat=None if recipe.compat is None else ON_TASK_VECTORS,
            hint=hint,
        )
        if plan is None:
            break
        if not recipe.compares:
            known[name] = plan.as_checkpoint(stages / name)
        plans.append(plan)
    return tuple(plans)


def _check_bare(recipe: Recipe, checkpoints: Mapping[str, Checkpoint], problems: Problems) -> None:
    """Refuse what weights alone cannot have: a tokenizer, a chat template, scores."""
    if not any(one.is_bare for one in checkpoints.values()):
        return
    asked = {
        "tokenizer": recipe.tokenizer,
        "chat_template": recipe.chat_template or recipe.jinja,
        "output.config": recipe.output.config,
        "evaluate": recipe.evaluations,
    }
    for name, value in asked.items():
        if value:
            what = "the models are weights alone, without configuration and tokenizer"
            problems.add(recipe.file.name, f"{name}: {what}", f"leave `{name}` out")


def _origin(
    recipe: Recipe, spec: MergeSpec, checkpoints: Mapping[str, Checkpoint]
) -> Checkpoint | None:
    """Follow a merge's donor back through stages to the model that it comes from."""
    while spec.donor in recipe.merges:
        spec = recipe.merges[spec.donor]
    return checkpoints.get(spec.donor)


def check_apart(target: Path, checkpoints: Mapping[str, Checkpoint]) -> None:
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
