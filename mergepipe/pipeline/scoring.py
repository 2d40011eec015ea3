"""The models of a recipe and its result, asked one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mergepipe.evaluate import Scores, Settings, results_jsonl, score
from mergepipe.manifest import RESULTS_FILE
from mergepipe.model import Model
from mergepipe.pipeline.late import LateModel
from mergepipe.pipeline.live import LiveModels
from mergepipe.pipeline.merging import Outcome
from mergepipe.pipeline.preparing import Prepared
from mergepipe.write import disk_faults

__all__ = ["evaluate_result", "input_model", "input_models", "reference_of"]


def evaluate_result(
    prepared: Prepared,
    outcome: Outcome,
    *,
    notice: Callable[[str], None],
    settings: Settings | None = None,
) -> Scores:
    """Score every model of the recipe and the result on `evaluate:`, on the CPU in fp32.

    `notice` is told the name of each model as its turn comes. Every item's values are written to
    results.jsonl beside the weights.
    """
    scores = score(_askable(prepared, outcome, notice), prepared.evaluations, settings)
    _write(outcome.folder / RESULTS_FILE, results_jsonl(scores.rows, scores.failures))
    return scores


def reference_of(prepared: Prepared) -> str:
    """Give the label that others are compared with: the base of the result, or the first model."""
    base = prepared.recipe.merges[prepared.recipe.result].base
    labels = tuple(prepared.checkpoints)
    return base if base is not None and base in labels else labels[0]


def _write(file: Path, text: str) -> None:
    """Write a file in one step."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with disk_faults(file):
        try:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)


def _askable(
    prepared: Prepared, outcome: Outcome, notice: Callable[[str], None]
) -> Iterator[Model]:
    """Give the models one after the other; only one is in memory."""
    yield from input_models(prepared, notice)
    name = prepared.recipe.result
    notice(name)
    yield LateModel(outcome.folder, "merged" if name == "merge" else name)


def input_models(prepared: Prepared, notice: Callable[[str], None]) -> Iterator[Model]:
    """Give the inputs of a recipe one after the other; adapters are applied in memory."""
    for label in prepared.checkpoints:
        notice(label)
        yield input_model(prepared, label)


def input_model(prepared: Prepared, label: str) -> Model:
    """Give one input of a recipe, with its adapter applied in memory."""
    checkpoint = prepared.checkpoints[label]
    if checkpoint.low_rank or checkpoint.source.adapter or checkpoint.source.adapter_hub:
        return LiveModels(prepared.resources).applied(checkpoint)
    return LateModel(checkpoint.folder, label)
