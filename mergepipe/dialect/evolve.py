"""mergekit-evolve's configuration -> the recipe, with what is searched in it, that it means.

The genome has a gene for each group of layers, model, filter of tensor names (and all else), and
parameter: `weight`, also `density` for ties and dare_ties. Weights start at 1/models, densities at
1. `layer_granularity` is the number of layers in a group; with `smooth` the groups' values become a
gradient over depth. CMA-ES, by nevergrad, in place of pycma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mergepipe.dialect.references import References
from mergepipe.errors import Problems
from mergepipe.recipe import Document

__all__ = ["convert_evolve", "is_evolve"]

_METHODS: Mapping[str, tuple[str, ...]] = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "dare_linear": ("weight", "density"),
}
_TESTS = (
    *("mmlu", "hendrycks", "agieval", "gsm8k", "hellaswag", "winogrande", "arc_", "ai2_arc"),
    *("truthfulqa", "bigbench", "piqa", "openbookqa", "leaderboard"),
)
_HIGHEST = 2.0  # of a weight: mergekit-evolve has no bound there
_GENOME = (
    "models",
    "merge_method",
    "base_model",
    "tokenizer_source",
    "layer_granularity",
    "normalize",
    "allow_negative_weights",
    "filters",
    "smooth",
)
_TOP = (
    "genome",
    "tasks",
    "limit",
    "num_fewshot",
    "shuffle",
    "random_init",
    "apply_chat_template",
    "output",
)


def is_evolve(data: object) -> bool:
    """Tell a configuration of mergekit-evolve."""
    return isinstance(data, dict) and "genome" in data and "mergepipe" not in data


def convert_evolve(document: Document, problems: Problems) -> Document:
    """Give the recipe that a configuration means; its faults go to `problems`."""
    data = document.data
    genome = data["genome"] if isinstance(data["genome"], dict) else {}
    _warn_of_unknown(data, genome, document, problems)
    method, named = genome.get("merge_method"), genome.get("models")
    if not isinstance(method, str) or method not in _METHODS:
        what = f"merge_method {method!r} is not searched here"
        fix = f"use one of {', '.join(_METHODS)}, or write a recipe"
        problems.add(document.where(("genome",)), what, fix)
        return document
    if not isinstance(named, list) or not named:
        problems.add(document.where(("genome",)), "`models` is missing", "list them")
        return document
    references = References(document, problems)
    labels = [references.label(one, ("genome", "models", at)) for at, one in enumerate(named)]
    merge: dict[str, Any] = {"method": method}
    if genome.get("base_model"):
        merge["base"] = references.label(genome["base_model"], ("genome", "base_model"))
    merge["models"] = {
        label: _genes(genome, method, len(labels)) for label in labels if label != merge.get("base")
    }
    if "ties" in method or method == "linear":
        merge["normalize"] = bool(genome.get("normalize", True))
    evaluations = _evaluations(data, document, problems)
    objective = {entry["name"]: weight for entry, weight in evaluations}
    recipe: dict[str, Any] = {
        "mergepipe": 1,
        "models": references.models,
        "merge": merge,
        "evaluate": [entry for entry, _ in evaluations],
        "search": {"optimizer": "CMA", "budget": 100, "objective": objective},
        "output": {"dtype": "bfloat16", **(data.get("output") or {})},
    }
    source = genome.get("tokenizer_source")
    if source == "base":
        recipe["tokenizer"] = merge.get("base", labels[0])
    elif source:
        place = ("genome", "tokenizer_source")
        recipe["tokenizer"] = source if source == "union" else references.label(source, place)
    return replace(document, data=recipe, origins=_origins(recipe), faults=())


def _warn_of_unknown(
    data: Mapping[str, Any], genome: Mapping[str, Any], document: Document, problems: Problems
) -> None:
    unknown: list[tuple[str, ...]] = [("genome", key) for key in genome if key not in _GENOME]
    unknown += [(key,) for key in data if key not in _TOP]
    for path in unknown:
        problems.warn(document.where(path), "unknown field, which has no effect")


def _genes(genome: Mapping[str, Any], method: str, models: int) -> dict[str, Any]:
    low = -_HIGHEST if genome.get("allow_negative_weights") else 0.0
    ranges = {"weight": ([low, _HIGHEST], 1 / max(1, models)), "density": ([0.0, 1.0], 1.0)}
    found: dict[str, Any] = {}
    for name in _METHODS[method]:
        bounds, start = ranges[name]
        gene = {"search": bounds, "init": start, **_spread(genome)}
        filters = genome.get("filters")
        if filters:
            cases = [{"tensors": f"*{one}*", "value": dict(gene)} for one in filters]
            found[name] = [*cases, {"value": dict(gene)}]
        else:
            found[name] = gene
    return found


def _spread(genome: Mapping[str, Any]) -> dict[str, Any]:
    size = genome.get("layer_granularity")
    if not isinstance(size, int) or size < 1:
        return {}
    return {"per": "group", "size": size, "smooth": bool(genome.get("smooth"))}


def _evaluations(
    data: Mapping[str, Any], document: Document, problems: Problems
) -> list[tuple[dict[str, Any], float]]:
    """Give the tasks as evaluations of lm-evaluation-harness, and their weights."""
    tasks = data.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        problems.add(document.where(()), "`tasks` is missing", "list what candidates are scored on")
        return []
    found: list[tuple[dict[str, Any], float]] = []
    for at, task in enumerate(tasks):
        fields = {"name": task} if isinstance(task, str) else task
        if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
            problems.add(document.where(("tasks", at)), "a task needs a `name`")
            continue
        weight = float(fields.get("weight", 1.0))
        if weight <= 0:
            what = "a weight of 0 or below: which way is up, tasks say themselves"
            problems.add(document.where(("tasks", at)), what, "give the size of the weight")
            continue
        entry = {
            "use": "lm_eval",
            "name": "".join(c if c.isalnum() or c in "_.-" else "_" for c in fields["name"]),
            "tasks": [fields["name"]],
        }
        if fields.get("metric", "acc,none") != "acc,none":
            what = "the task's first metric is used, whatever `metric` says"
            problems.warn(document.where(("tasks", at)), what)
        if fields["name"].startswith(_TESTS) and not fields["name"].endswith("_train"):
            what = f"'{fields['name']}' is a public benchmark: results on it will mean little"
            problems.warn(document.where(("tasks", at)), what)
        for key in ("limit", "num_fewshot"):
            if data.get(key) is not None:
                entry[key] = data[key]
        found.append((entry, weight))
    return found


def _origins(recipe: Mapping[str, Any]) -> dict[Any, Any]:
    shown = {"merge": "genome", "models": "genome", "evaluate": "tasks", "search": "genome"}
    return {(key,): (place,) for key, place in shown.items()} | {
        (key,): () for key in recipe if key not in shown
    }
