"""Recipe -> everything known before a weight is read: models opened, stages planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergepipe.checkpoint import Checkpoint, open_checkpoint
from mergepipe.dialect import convert, convert_evolve, is_evolve, is_mergekit, with_preset
from mergepipe.errors import InputError, Problem, Problems
from mergepipe.evaluate import Evaluation, parse_evaluation
from mergepipe.execute import Budget, Resources, as_device, default_memory, share_out
from mergepipe.moe import is_moe
from mergepipe.pipeline.addressed import check_served
from mergepipe.pipeline.stages import named_tokenizer, plan_stages
from mergepipe.pipeline.vocabularies import United, unite_models
from mergepipe.plan import Plan
from mergepipe.recipe import (
    Document,
    EvaluationSpec,
    Recipe,
    has_several,
    override,
    parse,
    parse_evaluations,
    parse_models,
    read_document,
    read_documents,
)
from mergepipe.recipe.ensembles import EnsembleSpec
from mergepipe.search.compositions import Compositions
from mergepipe.search.remote import RemotePool
from mergepipe.search.space import untuned
from mergepipe.tokenizer import ResultTokenizer
from mergepipe.transplant.planning import Transplant
from mergepipe.write import STAGES, partial_folder

__all__ = [
    "Options",
    "Prepared",
    "as_recipe",
    "check_apart",
    "check_merge",
    "find_evaluations",
    "named_target",
    "prepare_merge",
    "read_file",
    "read_recipe",
    "replanned",
    "settled",
    "stage_folder",
]


_COMPAT_HINT = (
    "; where only vocabularies differ, `tokenizer_source: base` or `union` aligns them, and "
    "--compat mergekit-0.1.4 merges the rows that they share"
)


@dataclass(frozen=True, slots=True)
class Options:
    """What is chosen beside a recipe."""

    out: Path | None = None  # in place of the recipe's
    resources: Resources = field(default_factory=Resources)
    local_files_only: bool = False  # download nothing
    plugins: Mapping[str, str] = field(default_factory=dict)  # loaded: file name -> digest
    tell: Callable[[str], None] | None = None  # given messages about what takes long


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
    united: United | None = None  # where the recipe asks for a vocabulary
    transplants: Mapping[str, Transplant] = field(default_factory=dict)
    searched: Document | None = None  # the recipe with what is searched, where it is
    service: RemotePool | None = None  # that merges in our place; then there are no plans
    ensemble: EnsembleSpec | None = None  # in place of a merge; then there are no plans
    compositions: Compositions | None = None  # of adapters, on a server; then there are no plans

    @property
    def disk_bytes(self) -> int:
        """Bytes of disk needed: the result, and stages before it while it is made."""
        made = sum(one.bytes_written for one in self.transplants.values())
        return made + sum(plan.bytes_written for plan in self.plans)

    @property
    def peak_bytes(self) -> int:
        """Memory needed beside the interpreter and libraries, about."""
        return max(plan.peak_bytes(self.budget.workers) for plan in self.plans)

    @property
    def threads(self) -> int:
        """Workers at the same time."""
        return self.budget.workers

    def tokenizer_folder(self, plan: Plan) -> Path:
        """Give the folder of the model whose tokenizer a plan's result has, or one made of it."""
        if self.united is not None:
            return self.united.union.source.vocabulary.folder
        named = self.checkpoints.get(named_tokenizer(self.recipe))
        return plan.donor.tokenizer_folder if named is None else named.folder

    def made_tokenizer(self, plan: Plan) -> ResultTokenizer | None:
        """Give the tokenizer of a plan's result that is no copy of its donor's files."""
        if self.united is not None:
            return self.united.tokenizer
        label = plan.name if plan.name in self.transplants else plan.spec.donor
        while label in self.recipe.merges and label not in self.transplants:
            label = self.recipe.merges[label].donor
        found = self.transplants.get(label)
        return None if found is None else found.tokenizer


def prepare_merge(document: Document, problems: Problems, options: Options) -> Prepared:
    """Open the models of a recipe that was read, and plan every stage.

    No weight is read and nothing is written.

    Raises
    ------
    InputError
        with every fault of the recipe, configurations, indexes and headers at once.
    EnvironmentFault
        if the memory that may be used is not enough for one tensor.

    """
    resources = settled(options.resources)
    searched, document = document, untuned(document, problems)
    recipe = parse(document, problems)
    sources = recipe.sources if recipe is not None else parse_models(document)
    specs = recipe.evaluations if recipe is not None else parse_evaluations(document)
    opened = {
        label: open_checkpoint(source, problems, local_files_only=options.local_files_only)
        for label, source in sources.items()
    }
    evaluations = find_evaluations(specs, document.folder, problems)
    check_served(() if recipe is None else recipe.beside.values(), problems)
    problems.raise_any()
    assert recipe is not None, "a recipe without problems"
    checkpoints = {label: found for label, found in opened.items() if found is not None}
    target = named_target(options.out or recipe.output.path)
    hint = _COMPAT_HINT if document.origins and recipe.compat is None else ""
    united = unite_models(recipe, checkpoints, problems)
    problems.raise_any()
    plans, transplants = plan_stages(
        recipe, checkpoints, united, stage_folder(target), problems, hint=hint
    )
    _check_bare(recipe, checkpoints, problems)
    problems.raise_any()
    if target is not None:
        check_apart(target, checkpoints)
        for one in transplants.values():
            _refuse_shared(target, one.donor.label, one.donor.folder)
    return Prepared(
        recipe=recipe,
        checkpoints=checkpoints,
        plans=plans,
        evaluations=evaluations,
        target=target,
        resources=resources,
        budget=share_out(plans, resources.threads, resources.max_memory),
        warnings=tuple(problems.warnings),
        plugins=options.plugins,
        united=united,
        transplants=transplants,
        searched=None if recipe.search is None else searched,
    )


def replanned(prepared: Prepared, document: Document) -> Prepared:
    """Prepare a recipe that differs from a prepared one in values that are searched.

    Raises
    ------
    InputError
        if these values make no recipe.

    """
    problems = Problems()
    recipe = parse(document, problems)
    problems.raise_any()
    assert recipe is not None, "a recipe without problems"
    checkpoints = prepared.checkpoints
    united = unite_models(recipe, checkpoints, problems)
    stages = stage_folder(prepared.target)
    plans, transplants = plan_stages(recipe, checkpoints, united, stages, problems, hint="")
    problems.raise_any()
    return replace(
        prepared, recipe=recipe, plans=plans, transplants=transplants, united=united, warnings=()
    )


def read_recipe(
    file: Path, problems: Problems, settings: Sequence[str] = (), *, compat: str | None = None
) -> Document:
    """Read a recipe, or a configuration of mergekit as the recipe that it means.

    A mixture of experts is given as it is: it has no form as a recipe.
    """
    return as_recipe(read_file(file, settings), problems, compat=compat)


def read_file(file: Path, settings: Sequence[str] = ()) -> Document:
    """Read a recipe, or whatever mergekit has in its place."""
    return override(_read(file), settings)


def as_recipe(document: Document, problems: Problems, *, compat: str | None = None) -> Document:
    """Give the recipe that a document means: see `read_recipe`."""
    data = document.data
    if is_moe(data):
        return document
    if is_mergekit(data) or (isinstance(data, list) and any(map(is_mergekit, data))):
        document = convert(document, problems)
    elif is_evolve(data):
        document = convert_evolve(document, problems)
    document = with_preset(document, problems)
    problems.raise_any()  # what follows would speak of parts that nobody wrote
    return override(document, [f"compat={compat}"] if compat else [])


def check_merge(document: Document, problems: Problems) -> None:
    """Find what can be said of a recipe without its models."""
    parse(untuned(document, problems), problems)


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
            limit=spec.limit,
            split=spec.split,
            max_error_rate=spec.max_error_rate,
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


def check_apart(target: Path, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Refuse an output that is an input, or lies in one, or has one inside."""
    for label, checkpoint in checkpoints.items():
        _refuse_shared(target, label, checkpoint.folder)


def _refuse_shared(target: Path, label: str, folder: Path) -> None:
    ours, theirs = target.resolve(), folder.resolve()
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        what = f"the output and the model '{label}' share a folder"
        raise InputError(Problem(str(target), what, "write the output elsewhere"))
