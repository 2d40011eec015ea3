"""The models of a recipe and its result, asked one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from mergepipe.checkpoint import Checkpoint
from mergepipe.errors import Problems
from mergepipe.evaluate import ScoreRow, score
from mergepipe.execute import Resources
from mergepipe.model import Model
from mergepipe.pipeline.merging import Outcome, execute_plan
from mergepipe.pipeline.preparing import Prepared
from mergepipe.plan import make_plan
from mergepipe.recipe import MergeSpec
from mergepipe.write import write_companions

__all__ = ["evaluate_result", "input_models"]


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
    from mergepipe.model.load import local_model

    yield from input_models(prepared, scratch, notice)
    name = prepared.recipe.result
    notice(name)
    yield local_model(outcome.folder, "merged" if name == "merge" else name)


def input_models(
    prepared: Prepared, scratch: Path, notice: Callable[[str], None]
) -> Iterator[Model]:
    """Load the inputs of a recipe one after the other."""
    from mergepipe.model.load import local_model

    for label, checkpoint in prepared.checkpoints.items():
        notice(label)
        folder = checkpoint.folder
        if checkpoint.low_rank or checkpoint.source.adapter or checkpoint.source.adapter_hub:
            folder = _applied(checkpoint, scratch / label, prepared.resources)
        yield local_model(folder, label)


def _applied(checkpoint: Checkpoint, folder: Path, resources: Resources) -> Path:
    """Write a model with its adapter applied, so that it can be loaded."""
    label, problems = checkpoint.label, Problems()
    spec = MergeSpec(label, "linear", None, (label,), {label: {}}, {}, ())
    plan = make_plan(label, spec, {label: checkpoint}, problems)
    problems.raise_any()
    assert plan is not None, "a model fits itself"
    execute_plan(plan, folder, resources, None)
    write_companions(
        folder,
        config=checkpoint.folder,
        tokenizer=checkpoint.folder,
        chat_template=checkpoint.folder,
        dtype=None,
        problems=problems,
    )
    return folder
