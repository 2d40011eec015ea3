"""Merges that exist only in memory, as models that can be asked; their weights are in no file.

What a live model answers is what the checkpoint would answer that `merge` writes. While it is made,
two things pass through a temporary folder: what stands beside the weights, so that it is read as
it would be written, and the results of stages before the last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from blake3 import blake3

from mergepipe.checkpoint import Checkpoint
from mergepipe.errors import InputError, Problem, Problems
from mergepipe.execute import Resources, Surveys, as_device, execute
from mergepipe.method import load_method
from mergepipe.pipeline.dependencies import step_values
from mergepipe.pipeline.merging import execute_plan, write_all_companions
from mergepipe.pipeline.preparing import Prepared
from mergepipe.plan import Input, Plan, Step, make_plan, model_scopes
from mergepipe.recipe import MergeSpec
from mergepipe.tokenizer import AlignedRows
from mergepipe.write import STAGES, write_companions

if TYPE_CHECKING:
    from mergepipe.model.local import LocalModel

__all__ = ["LiveModels", "live_model"]


def live_model(
    prepared: Prepared, plan: Plan, *, dtype: str = "float32", device: str = "cpu"
) -> LocalModel:
    """Make the model of one plan of a recipe in memory, by the resources of the recipe.

    `dtype` is that of the module's parameters, each first rounded to what the checkpoint would
    hold; `device` is where it is asked. Its fingerprint says what it was made of: recipe values,
    the inputs' bytes, tokenizer and template.

    Raises
    ------
    InputError, EnvironmentFault
        from the merge, or if the result is no model that can be asked.

    """
    return LiveModels(prepared.resources, dtype=dtype, device=device).merged(prepared, plan)


class LiveModels:
    """Room in memory for one merge after the other; only tensors that change are made again.

    A model that it gave must not be asked any more once the next one is begun: both have the same
    memory as their parameters. They are asked where, and in what dtype, the resources say.
    """

    def __init__(
        self, resources: Resources, *, dtype: str | None = None, device: str | None = None
    ) -> None:
        import torch

        from mergepipe.execute.memory import TensorSink

        self._resources, self._dtype = resources, dtype or resources.score_dtype
        self._device = device or resources.device or "cpu"
        self._sink = TensorSink(getattr(torch, self._dtype))
        self._surveys = Surveys()
        self._made: Mapping[str, str] = {}  # tensors in the sink -> all that they depend on
        self._latest: _Latest | None = None

    def merged(self, prepared: Prepared, plan: Plan) -> LocalModel:
        """Make the model of one plan of a recipe: see `live_model`.

        Where only weights are other than in the model before, they are written into its module.
        """
        if plan.donor.is_bare:
            what = "weights alone, without configuration and tokenizer, cannot be asked"
            raise InputError(Problem(plan.name, what))
        beside = _beside(prepared, plan)
        with TemporaryDirectory(prefix="mergepipe-") as scratch:
            folder = Path(scratch)
            read, known = _with_stages(prepared, plan, folder / STAGES)
            digests = step_digests(read, known, prepared.plugins)
            latest, self._latest = self._latest, None
            self._surveys.begin(_survey_digests(read, known, prepared.plugins))
            in_place = self._write(read, digests)
            if latest is not None and in_place and latest.beside == beside:
                model = self._renewed(latest, plan.name, digests)
            else:
                problems = Problems()
                write_all_companions(prepared, plan, folder, problems)
                problems.raise_any()
                model = self._module(plan.name, folder, digests)
                self._remember(model, folder, beside)
        return model

    def applied(self, checkpoint: Checkpoint) -> LocalModel:
        """Make a model with its adapter applied."""
        label, problems = checkpoint.label, Problems()
        spec = MergeSpec(label, "linear", None, (label,), {label: {}}, {}, ())
        plan = make_plan(label, spec, {label: checkpoint}, problems)
        problems.raise_any()
        assert plan is not None, "a model fits itself"
        with TemporaryDirectory(prefix="mergepipe-") as scratch:
            write_companions(
                Path(scratch),
                config=checkpoint.folder,
                tokenizer=checkpoint.folder,
                chat_template=checkpoint.folder,
                dtype=None,
                problems=problems,
            )
            digests = step_digests(plan, {}, {})
            self._latest = None
            self._surveys.begin({})
            self._write(plan, digests)
            return self._module(plan.name, Path(scratch), digests)

    def _write(self, plan: Plan, digests: Mapping[str, str]) -> bool:
        """Make what has changed; tell whether all of it is where it was."""
        resources = self._resources
        unchanged = {name for name, one in digests.items() if self._made.get(name) == one}
        self._made = {}  # of which nothing is true while tensors are made, or if that fails
        before = self._places()
        self._sink.begin(plan)
        in_place = self._places() == before
        execute(
            plan,
            self._sink,
            done=unchanged,
            threads=resources.threads,
            max_memory=resources.max_memory,
            device=None if resources.device is None else as_device(resources.device),
            surveys=self._surveys,
        )
        self._made = digests
        return in_place

    def _places(self) -> dict[str, int]:
        return {name: one.data_ptr() for name, one in self._sink.tensors.items()}

    def _module(self, name: str, folder: Path, digests: Mapping[str, str]) -> LocalModel:
        """Make a module of the tensors; `folder` has what stands beside the weights."""
        from mergepipe.model.load import model_of_tensors

        return model_of_tensors(
            self._sink.tensors,
            folder,
            name,
            dict(digests),
            dtype=self._dtype,
            device=self._device,
        )

    def _remember(self, model: LocalModel, folder: Path, beside: object) -> None:
        """Keep a model for the next merge if its module has our memory as its parameters."""
        from mergepipe.model.companions import companions_of
        from mergepipe.model.fingerprint import known_beside

        theirs = {one.data_ptr() for one in model.module.state_dict().values()}
        if theirs <= set(self._places().values()):
            self._latest = _Latest(model, beside, known_beside(companions_of(folder)))

    def _renewed(self, latest: _Latest, name: str, digests: Mapping[str, str]) -> LocalModel:
        """Give the model before, whose weights are new, as another."""
        from mergepipe.model import Usage
        from mergepipe.model.fingerprint import fingerprint_beside, precision_of

        self._latest = latest
        precision = precision_of(self._dtype, self._device)
        fingerprint = fingerprint_beside(latest.known, precision, dict(digests))
        return replace(latest.model, name=name, fingerprint=fingerprint, usage=Usage())


@dataclass(frozen=True)
class _Latest:
    """A model whose module can take other weights, and what stands beside them."""

    model: LocalModel
    beside: object  # what that was made of
    known: list[object]  # what the fingerprint says of it


def _beside(prepared: Prepared, plan: Plan) -> object:
    """Give all that decides what stands beside the weights of a plan's result."""
    recipe, made = prepared.recipe, prepared.made_tokenizer(plan)
    return (
        plan.donor.folder,
        json.dumps(dict(plan.donor.config), sort_keys=True, default=str),
        prepared.tokenizer_folder(plan),
        None if made is None else made.digest,
        (recipe.output.config, recipe.output.dtype, recipe.chat_template, recipe.jinja),
        (plan.layers, plan.rows),
    )


def _with_stages(
    prepared: Prepared, plan: Plan, scratch: Path
) -> tuple[Plan, dict[str, Mapping[str, str]]]:
    """Make the stages that a plan reads; give it as it reads them there, and their digests."""
    made: dict[str, Checkpoint] = {}
    known: dict[str, Mapping[str, str]] = {}
    for stage in _stages_before(prepared, plan):
        read = _reading(stage, made)
        execute_plan(read, scratch / stage.name, prepared.resources, None)
        known[stage.name] = step_digests(read, known, prepared.plugins)
        made[stage.name] = stage.as_checkpoint(scratch / stage.name)
    return _reading(plan, made), known


def _stages_before(prepared: Prepared, plan: Plan) -> list[Plan]:
    """Give the stages that a plan reads, or that these read, in order."""
    if prepared.recipe.compares:  # merges side by side
        return []
    wanted, found = _labels(plan), []
    for stage in reversed(prepared.plans[: prepared.plans.index(plan)]):
        if stage.name in wanted:
            found.append(stage)
            wanted |= _labels(stage)
    return found[::-1]


def _labels(plan: Plan) -> set[str]:
    return {one.label for step in plan.steps for one in step.all_inputs}


def _reading(plan: Plan, made: Mapping[str, Checkpoint]) -> Plan:
    """Give a plan that reads the stages where they were made."""
    if not made:
        return plan

    def moved(one: Input) -> Input:
        return replace(one, checkpoint=made.get(one.label, one.checkpoint))

    steps = (
        replace(
            step,
            base=None if step.base is None else moved(step.base),
            inputs=tuple(map(moved, step.inputs)),
        )
        for step in plan.steps
    )
    return replace(plan, steps=tuple(steps))


def step_digests(
    plan: Plan, stages: Mapping[str, Mapping[str, str]], plugins: Mapping[str, str]
) -> dict[str, str]:
    """Give a digest of all that each tensor of a plan depends on, down to the inputs' bytes."""
    found = _digests(plan, stages, plugins, step_values)
    for at in range(max((len(step.calls) for step in plan.steps), default=0)):
        for scope in model_scopes(plan.steps, at):  # each depends on all
            together = _digest([found[step.name] for step in scope])
            found |= {step.name: _digest([found[step.name], together]) for step in scope}
    return found


def _survey_digests(
    plan: Plan, stages: Mapping[str, Mapping[str, str]], plugins: Mapping[str, str]
) -> dict[str, str]:
    """Give a digest of what the survey of each merged tensor depends on."""

    def values(step: Step) -> object:
        late = () if step.method is None else load_method(step.method).late(step.shared)
        return step_values(step, late)

    return _digests(plan, stages, plugins, values)


def _digests(
    plan: Plan,
    stages: Mapping[str, Mapping[str, str]],
    plugins: Mapping[str, str],
    values: Callable[[Step], object],
) -> dict[str, str]:
    from mergepipe.model.fingerprint import file_digest

    run = [version("mergepipe"), plan.seed, plan.nan_policy, dict(plugins)]
    digest_of = cache(file_digest)  # most tensors are in the same few files
    return {
        step.name: _digest([run, values(step), list(_contents(step.all_inputs, stages, digest_of))])
        for step in plan.steps
    }


def _contents(
    inputs: tuple[Input, ...],
    stages: Mapping[str, Mapping[str, str]],
    digest_of: Callable[[Path], str],
) -> Iterator[list[str]]:
    """Give digests of what each input's bytes are."""
    for one in inputs:
        if one.label in stages:
            yield [stages[one.label][one.name]]
            continue
        held, update = one.stored.memory, one.checkpoint.low_rank.get(one.name)
        if isinstance(held, AlignedRows):
            yield [digest_of(s.file) for s in held.sources]
            continue
        stored = [one.stored] if update is None else [one.stored, update.a, update.b]
        # What is made in memory has a name that stands for all that it is made of.
        yield [digest_of(s.file) if s.file.is_file() else str(s.file) for s in stored]


def _digest(values: object) -> str:
    return str(blake3(json.dumps(values).encode()).hexdigest())
