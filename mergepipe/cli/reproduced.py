"""What `reproduce` found, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mergepipe.cli.console import results, size
from mergepipe.cli.progress import tell
from mergepipe.errors import DifferenceError, InputError, Problem, printable
from mergepipe.pipeline import Reproduced, ScorePair

__all__ = ["named_models", "show"]

_MOST = 20  # differences that are named one by one


def named_models(options: Sequence[str]) -> dict[str, Path]:
    """Read `LABEL=PATH` options."""
    found = {}
    for option in options:
        label, separator, path = option.partition("=")
        if not separator or not label or not path:
            raise InputError(Problem("--model", f"'{option}' is not LABEL=PATH"))
        found[label] = Path(path)
    return found


def show(folder: Path, found: Reproduced, *, json_only: bool) -> None:
    """Print how a result that was made again compares.

    Raises
    ------
    DifferenceError
        naming what differs.

    """
    if json_only:
        print(json.dumps(_json(folder, found), indent=2))  # noqa: T201
    for one in found.versions:
        tell(f"{one.name}: {one.recorded} then, {one.here} here")
    _tell_scores(found.scores)
    if found.folder is not None:
        tell(f"kept: {found.folder}")
    if found.differences:
        raise DifferenceError(*_named(found.differences))
    if not json_only:
        said = f"{folder}: the same bytes: {found.tensors} tensors, {size(found.bytes)}"
        results.print(printable(said), markup=False, highlight=False, soft_wrap=True)


def _named(differences: Sequence[Problem]) -> list[Problem]:
    more = len(differences) - _MOST
    rest = [Problem("", f"and {more:,} more differences")] if more > 0 else []
    return [*differences[:_MOST], *rest]


def _tell_scores(scores: Sequence[ScorePair]) -> None:
    if not scores:
        return
    other = [one for one in scores if not one.is_same]
    for one in other[:_MOST]:
        tell(f"score of {one.model}, {one.name}, {one.metric}: was {one.recorded}, is {one.here}")
    tell(f"scores: {len(scores) - len(other)} of {len(scores)} are the same")


def _json(folder: Path, found: Reproduced) -> dict[str, object]:
    return {
        "folder": str(folder),
        "same": not found.differences,
        "tensors": found.tensors,
        "bytes": found.bytes,
        "differences": [{"where": one.where, "what": one.what} for one in found.differences],
        "versions": [
            {"name": one.name, "recorded": one.recorded, "here": one.here} for one in found.versions
        ],
        "scores": [
            {
                "model": one.model,
                "name": one.name,
                "metric": one.metric,
                "recorded": one.recorded,
                "here": one.here,
                "same": one.is_same,
            }
            for one in found.scores
        ],
        "kept": None if found.folder is None else str(found.folder),
    }
