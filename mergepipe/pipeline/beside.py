"""The models of a recipe that are only asked, scored beside its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mergepipe.evaluate import Scores, Settings, score
from mergepipe.model import Model
from mergepipe.pipeline.addressed import served_model
from mergepipe.pipeline.preparing import Prepared
from mergepipe.recipe import ServedSpec

__all__ = ["score_beside"]


def score_beside(
    prepared: Prepared, *, notice: Callable[[str], None], settings: Settings | None = None
) -> Scores:
    """Score the models of `beside:`, each on the evaluations that it is for.

    `notice` is told the name of each as its turn comes.

    Raises
    ------
    InputError, EnvironmentFault
        if an address is refused, or the `openai` package is not installed.

    """
    found = Scores(())
    for label, spec in prepared.recipe.beside.items():
        asked = tuple(one for one in prepared.evaluations if one.name in spec.only)
        found += score(_announced(label, spec, notice), asked, settings)
    return found


def _announced(label: str, spec: ServedSpec, notice: Callable[[str], None]) -> Iterator[Model]:
    notice(label)
    yield served_model(spec, label)
