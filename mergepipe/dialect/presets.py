"""Searches by name: what LoraHub and mergekit-evolve search, written into a recipe.

A preset puts `{search: ...}` where a parameter of the merge has no value, and its own settings
where the `search:` section has none; whatever the recipe says itself stands. N models:

    preset            parameter            starts at        in          a first step
    lorahub           weight               0                [-1.5, 1.5]  0.5
    mergekit-evolve   weight               1/N              [0, 2]       1/6
                      density              1                [0, 1]       1/6
                      t (slerp, N = 2)     1/2              [0, 1]       √2/24

LoraHub adds 0.05 mean |w| to the loss and evaluates 40 candidates, by NGOpt (Huang et al. 2023,
https://arxiv.org/abs/2307.13269). mergekit-evolve (https://github.com/arcee-ai/mergekit) has such a
gene for each group of layers, model, filter of tensor names and parameter, by CMA-ES. Its genes
have no bounds: a weight is the size of its gene unless negative ones are allowed, a density the
size cut off at 1. Of two models its t is σ(b - a), of genes that start alike: by steps of 1/6 each
a first step of t is √2/6 · 1/4.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from mergepipe.errors import Problems, printable
from mergepipe.recipe import Document, GenomeFields

__all__ = ["with_preset"]

_EVOLVED: Mapping[str, tuple[str, ...]] = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "dare_linear": ("weight", "density"),
    "slerp": ("t",),
}
_COMPOSED = ("task_arithmetic",)
_HIGHEST = 2.0  # of a weight, for which mergekit-evolve has no bound
_LEAST = 0.001  # of a weight in an average, which needs some
_STEP = 1 / 6
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "lorahub": {"optimizer": "NGOpt", "budget": 40, "penalty": 0.05, "batch": 1},
    "mergekit-evolve": {"optimizer": "CMA", "budget": 100},
}


def with_preset(document: Document, problems: Problems) -> Document:
    """Give a recipe with what its preset searches; the same one if it names none.

    What is wrong with the `search:` section itself is left to whoever reads it.
    """
    data = copy.deepcopy(document.data)
    section = data.get("search") if isinstance(data, dict) else None
    if not isinstance(section, dict) or section.get("preset") not in list(_DEFAULTS):
        return document
    name = section["preset"]
    merge = data.get("merge")
    models = merge.get("models") if isinstance(merge, dict) else None
    if isinstance(models, list) and len(set(map(str, models))) == len(models):
        models = {str(label): {} for label in models}
    if not isinstance(models, dict) or not models:
        what = f"preset {name} searches a `merge:` of `models:`"
        problems.add(document.where(("search", "preset")), what, "give one, or write the ranges")
        return document
    data["search"] = {**_DEFAULTS[name], **section}
    merge["models"] = models
    _PRESETS[name](document, merge, section, problems)
    return replace(document, data=data)


def _lorahub(
    document: Document, merge: dict[str, Any], _: Mapping[str, Any], problems: Problems
) -> None:
    if _is_of(_COMPOSED, document, merge, problems):
        _fill(merge["models"], {"weight": {"search": [-1.5, 1.5], "init": 0.0}})


def _evolve(
    document: Document, merge: dict[str, Any], section: Mapping[str, Any], problems: Problems
) -> None:
    try:
        genome = GenomeFields.model_validate(section.get("genome") or {})
    except ValidationError:
        return
    if not _is_of(_EVOLVED, document, merge, problems):
        return
    method = merge["method"]
    count = len(merge["models"])
    if method == "slerp":
        step = math.sqrt(2) / 24
        merge.setdefault("t", _spread({"search": [0.0, 1.0], "init": 0.5, "sigma": step}, genome))
        return
    low = _LEAST if method == "linear" else 0.0
    low = -_HIGHEST if genome.allow_negative_weights else low
    bounds = {"weight": ([low, _HIGHEST], 1 / count), "density": ([0.0, 1.0], 1.0)}
    ranges = {
        name: {"search": bounds[name][0], "init": bounds[name][1], "sigma": _STEP, "clip": True}
        for name in _EVOLVED[method]
    }
    _fill(merge["models"], {name: _spread(one, genome) for name, one in ranges.items()})
    if method in {"linear", "ties", "dare_ties"}:
        merge.setdefault("normalize", True)


_PRESETS: Mapping[str, Callable[..., None]] = {"lorahub": _lorahub, "mergekit-evolve": _evolve}


def _is_of(
    methods: Mapping[str, object] | tuple[str, ...],
    document: Document,
    merge: Mapping[str, Any],
    problems: Problems,
) -> bool:
    if merge.get("method") in methods:
        return True
    what = f"{printable(merge.get('method'), 60)}: the preset searches {', '.join(methods)}"
    fix = "take one of them, or write the ranges in place of the preset"
    problems.add(document.where(("merge", "method")), what, fix)
    return False


def _fill(models: dict[str, Any], ranges: Mapping[str, Any]) -> None:
    for label, given in models.items():
        if given is None or isinstance(given, dict):
            models[label] = {**copy.deepcopy(dict(ranges)), **(given or {})}


def _spread(gene: dict[str, Any], genome: GenomeFields) -> Any:
    """Give a gene for each group of layers and filter."""
    if genome.layer_granularity:
        gene |= {"per": "group", "size": genome.layer_granularity, "smooth": genome.smooth}
    if not genome.filters:
        return gene
    cases = [{"tensors": f"*{part}*", "value": dict(gene)} for part in genome.filters]
    return [*cases, {"value": dict(gene)}]
