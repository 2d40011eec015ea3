"""Several merges of the same models, scored side by side; none is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate import Scores, Settings, league, score
from mergepipe.model import Model
from mergepipe.pipeline.adapter_serving import score_composition
from mergepipe.pipeline.beside import score_beside
from mergepipe.pipeline.ensembles import UNIFORM, score_ensemble
from mergepipe.pipeline.live import LiveModels
from mergepipe.pipeline.preparing import Prepared
from mergepipe.pipeline.scoring import input_models, with_retention

__all__ = ["compare", "compared_with"]


def compare(
    prepared: Prepared, *, notice: Callable[[str], None], settings: Settings | None = None
) -> Scores:
    """Make every merge of `compare:` in memory, score it, and rank them.

    `notice` is told the name of each model as its turn comes.

    Raises
    ------
    InputError
        if there is nothing to score them on, or an output is named.

    """
    if prepared.ensemble is not None:
        return score_ensemble(prepared, notice=notice, settings=settings)
    if prepared.compositions is not None:
        return score_composition(prepared, notice=notice, settings=settings)
    if not prepared.evaluations:
        what = "a comparison needs something to score the merges on"
        raise InputError(Problem(prepared.recipe.file.name, what, "give `evaluate:`"))
    if prepared.target is not None:
        what = "a comparison keeps no model"
        fix = "leave the output away, or `run` the merge that you choose"
        raise InputError(Problem(str(prepared.target), what, fix))
    scores = score(_models(prepared, notice), prepared.evaluations, settings)
    scores += score_beside(prepared, notice=notice, settings=settings)
    ranked = league(scores.rows, tuple(prepared.checkpoints), tuple(prepared.recipe.beside))
    return with_retention(prepared, Scores(ranked, scores.failures))


def compared_with(prepared: Prepared) -> str:
    """Give the model that others are held against: the base, or an ensemble in equal shares."""
    if prepared.ensemble is not None:
        return UNIFORM
    labels = tuple(prepared.checkpoints)
    bases = dict.fromkeys(one.base for one in prepared.recipe.merges.values())
    return next((base for base in bases if base in labels), labels[0])


def _models(prepared: Prepared, notice: Callable[[str], None]) -> Iterator[Model]:
    """Make the models one after the other; only one is in memory, and none on the disk."""
    yield from input_models(prepared, notice)
    live = LiveModels(prepared.resources)
    for plan in prepared.plans:
        notice(plan.name)
        yield live.merged(prepared, plan)
