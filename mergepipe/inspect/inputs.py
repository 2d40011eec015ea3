"""Folders, hub names or a recipe -> a base and the models to hold against it, opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergepipe.checkpoint import Checkpoint, ModelSource, open_checkpoint
from mergepipe.errors import InputError, Problem, Problems, did_you_mean
from mergepipe.recipe import Document, parse, parse_models, read_document

__all__ = ["Inputs", "open_inputs"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Models whose headers were read."""

    base: Checkpoint
    models: tuple[Checkpoint, ...]
    warnings: tuple[str, ...]


def open_inputs(named: Sequence[str], base: str | None = None) -> Inputs:
    """Open what was named: a base and models, or one recipe.

    Of several the first is the base, of a recipe that of its first merge, unless `base` names
    another by label or path.

    Raises
    ------
    InputError
        with every fault of the recipe, configurations, indexes and headers at once.

    """
    problems = Problems()
    recipe = len(named) == 1 and not Path(named[0]).is_dir()
    sources, chosen = _of_recipe(Path(named[0]), problems) if recipe else _of_paths(named)
    sources, chosen = _with_base(sources, base, chosen)
    if chosen is None:
        what = "its first merge names no base to hold the models against"
        raise InputError(Problem(named[0], what, "name one: --base LABEL_OR_PATH"))
    if len(sources) == 1:
        what = "there is no model beside the base"
        raise InputError(Problem(chosen, what, "give the base and at least one more, or a recipe"))
    opened = {label: open_checkpoint(one, problems) for label, one in sources.items()}
    problems.raise_any()
    found = {label: one for label, one in opened.items() if one is not None}
    models = tuple(one for label, one in found.items() if label != chosen)
    return Inputs(found[chosen], models, tuple(problems.warnings))


def _of_recipe(file: Path, problems: Problems) -> tuple[dict[str, ModelSource], str | None]:
    """Give base and models of the first merge; of other merges' models nothing is asked."""
    recipe = parse(read_document(file), problems)
    problems.raise_any()
    assert recipe is not None, "a recipe without problems"
    spec = next(iter(recipe.merges.values()))
    used = [*spec.models, *(label for part in spec.slices for label in part.models)]
    labels = dict.fromkeys(used if spec.base is None else (spec.base, *used))
    return {label: recipe.sources[label] for label in labels}, spec.base


def _of_paths(named: Sequence[str]) -> tuple[dict[str, ModelSource], str | None]:
    labels = _labels(named)
    return _sources(dict(zip(labels, named, strict=True))), labels[0]


def _labels(named: Sequence[str]) -> list[str]:
    """Name models by their folders, with as much of the path as tells them apart."""
    paths = [
        Path(text) if Path(text).name not in {"", ".."} else Path(text).resolve() for text in named
    ]
    for size in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["/".join(path.parts[-size:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{path.name} ({i})" for i, path in enumerate(paths, 1)]


def _sources(texts: Mapping[str, str]) -> dict[str, ModelSource]:
    document = Document(Path(), {"models": dict(texts)}, {(): (1, 1)})
    found = parse_models(document)
    faults = [
        Problem(text, "cannot be a model", "give a folder, or org/name on the Hugging Face hub")
        for label, text in texts.items()
        if label not in found
    ]
    if faults:
        raise InputError(*faults)
    return found


def _with_base(
    sources: dict[str, ModelSource], base: str | None, chosen: str | None
) -> tuple[dict[str, ModelSource], str | None]:
    """Take another base: one of the models, by label or path, or one more."""
    if base is None or base in sources:
        return sources, base or chosen
    same = [x for x, one in sources.items() if one.path and one.path.resolve() == _folder(base)]
    if same:
        return sources, same[0]
    if os.sep not in base and not Path(base).exists():
        what = f"unknown model '{base}'{did_you_mean(base, sources)}"
        raise InputError(Problem("--base", what))
    (label,) = _labels([base])
    label = base if label in sources else label
    return {**_sources({label: base}), **sources}, label


def _folder(text: str) -> Path:
    return Path(text).expanduser().resolve()
