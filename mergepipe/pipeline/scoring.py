"""The models of a recipe and its result, asked one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate import Scores, Settings, results_jsonl, score
from mergepipe.evaluate.retention import Suite, retention
from mergepipe.execute import Resources
from mergepipe.manifest import MANIFEST_FILE, RESULTS_FILE, manifest_bytes, read_manifest
from mergepipe.model import Model
from mergepipe.pipeline.beside import score_beside
from mergepipe.pipeline.describing import describe_scores
from mergepipe.pipeline.late import LateModel
from mergepipe.pipeline.live import LiveModels
from mergepipe.pipeline.merging import Outcome
from mergepipe.pipeline.preparing import Prepared
from mergepipe.pipeline.recording import add_scoring, timed
from mergepipe.write import replace_file

__all__ = ["evaluate_result", "input_model", "input_models", "reference_of", "with_retention"]


def evaluate_result(
    prepared: Prepared,
    outcome: Outcome,
    *,
    notice: Callable[[str], None],
    settings: Settings | None = None,
) -> Scores:
    """Score every model of the recipe and the result on `evaluate:`, and those of `beside:`.

    Where and in what dtype is the resources' to say. `notice` is told the name of each model as
    its turn comes. Every item's values are written to results.jsonl beside the weights, and the
    scores into the manifest.
    """
    seconds: dict[str, float] = {}
    models = timed(_askable(prepared, outcome, notice), seconds)
    scores = score(models, prepared.evaluations, settings)
    add_scoring(outcome.folder, seconds)
    scores += score_beside(prepared, notice=notice, settings=settings)
    scores = with_retention(prepared, scores)
    _record(outcome.folder, scores)
    return scores


def _record(folder: Path, scores: Scores) -> None:
    """Write results.jsonl, and its digest and the scores into the manifest, which is last."""
    text = results_jsonl(scores.rows, scores.failures).encode()
    replace_file(folder / RESULTS_FILE, text)
    manifest = read_manifest(folder)
    if not manifest.is_sealed:
        what = "was edited or damaged while the result was scored"
        raise InputError(Problem(str(folder / MANIFEST_FILE), what, "merge again"))
    scored = {**manifest.content, "results": describe_scores(scores, text)}
    replace_file(folder / MANIFEST_FILE, manifest_bytes(scored))


def with_retention(prepared: Prepared, scores: Scores) -> Scores:
    """Add what each model keeps of the specialists and forgets of the base, if that is asked."""
    asked = prepared.recipe.retention
    if asked is None:
        return scores
    suite = Suite(asked.domains, asked.general, asked.rates)
    return Scores(retention(scores.rows, suite, scores.failures), scores.failures)


def reference_of(prepared: Prepared) -> str:
    """Give the label that others are compared with: the base of the result, or the first model."""
    base = prepared.recipe.merges[prepared.recipe.result].base
    labels = tuple(prepared.checkpoints)
    return base if base is not None and base in labels else labels[0]


def _askable(
    prepared: Prepared, outcome: Outcome, notice: Callable[[str], None]
) -> Iterator[Model]:
    """Give the models one after the other; only one is in memory."""
    yield from input_models(prepared, notice)
    name = prepared.recipe.result
    notice(name)
    yield _late(outcome.folder, "merged" if name == "merge" else name, prepared.resources)


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
    return _late(checkpoint.folder, label, prepared.resources)


def _late(folder: Path, name: str, resources: Resources) -> Model:
    return LateModel(folder, name, dtype=resources.score_dtype, device=resources.device or "cpu")
