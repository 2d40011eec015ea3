"""Several merges of the same models, scored side by side; none is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from mergepipe.errors import InputError, Problem, Problems
from mergepipe.evaluate import ScoreRow, league, score
from mergepipe.model import Model
from mergepipe.pipeline.merging import execute_plan, write_all_companions
from mergepipe.pipeline.preparing import Prepared
from mergepipe.pipeline.scoring import input_models

__all__ = ["compare"]


def compare(prepared: Prepared, *, notice: Callable[[str], None]) -> tuple[ScoreRow, ...]:
    """Make every merge of `compare:` in a temporary folder, score it, and rank them.

    `notice` is told the name of each model as its turn comes.

    Raises
    ------
    InputError
        if there is nothing to score them on, or an output is named.

    """
    if not prepared.evaluations:
        what = "a comparison needs something to score the merges on"
        raise InputError(Problem(prepared.recipe.file.name, what, "give `evaluate:`"))
    if prepared.target is not None:
        what = "a comparison keeps no model"
        fix = "leave the output away, or `run` the merge that you choose"
        raise InputError(Problem(str(prepared.target), what, fix))
    with TemporaryDirectory(prefix="mergepipe-") as scratch:
        models = _models(prepared, Path(scratch), notice)
        return league(score(models, prepared.evaluations), tuple(prepared.checkpoints))


def _models(prepared: Prepared, scratch: Path, notice: Callable[[str], None]) -> Iterator[Model]:
    """Load the models one after the other; only one is in memory, one merge on the disk."""
    from mergepipe.model.load import local_model

    yield from input_models(prepared, scratch, notice)
    for plan in prepared.plans:
        notice(plan.name)
        folder, problems = scratch / "merge", Problems()
        execute_plan(plan, folder, prepared.resources, None)
        write_all_companions(prepared, plan, folder, problems)
        problems.raise_any()
        yield local_model(folder, plan.name)
        shutil.rmtree(folder)
