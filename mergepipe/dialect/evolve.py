"""mergekit-evolve's configuration -> the recipe that it means: a merge, tasks, and its preset.

The genome is `preset: mergekit-evolve` (see `mergepipe.dialect.presets`), by nevergrad's CMA-ES in
place of pycma's. `task_search_path`, which is an option there, may stand in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergepipe.dialect.methods import METHODS
from mergepipe.dialect.references import References
from mergepipe.dialect.values import native_default
from mergepipe.errors import Problems
from mergepipe.recipe import Document

__all__ = ["convert_evolve", "is_evolve"]

_TESTS = (
    *("mmlu", "hendrycks", "agieval", "gsm8k", "hellaswag", "winogrande", "arc_", "ai2_arc"),
    *("truthfulqa", "bigbench", "piqa", "openbookqa", "leaderboard"),
)
_MERGE = ("models", "merge_method", "base_model", "tokenizer_source", "normalize")
_GENES = ("layer_granularity", "allow_negative_weights", "filters", "smooth")
_READ = ("genome", "tasks", "limit", "num_fewshot", "apply_chat_template", "output", "search")
_NO_EFFECT = ("shuffle", "random_init", "fewshot_as_multiturn")
_SLERPED = 2  # models
_NORMALIZED = ("ties", "dare_ties", "linear")  # unless the genome says otherwise


def is_evolve(data: object) -> bool:
    """Tell a configuration of mergekit-evolve."""
    return isinstance(data, dict) and "genome" in data and "mergepipe" not in data


def convert_evolve(document: Document, problems: Problems) -> Document:
    """Give the recipe that a configuration means; its faults go to `problems`."""
    data = document.data
    genome = data["genome"] if isinstance(data["genome"], dict) else {}
    _warn_of_unknown(data, genome, document, problems)
    named = genome.get("models")
    if not isinstance(named, list) or not named:
        problems.add(document.where(("genome",)), "`models` is missing", "list them")
        return document
    references = References(document, problems)
    labels = [references.label(one, ("genome", "models", at)) for at, one in enumerate(named)]
    base = genome.get("base_model")
    if base:
        base = references.label(base, ("genome", "base_model"))
    evaluations = _evaluations(data, document, problems)
    objective = {entry["name"]: weight for entry, weight in evaluations}
    genes = {key: genome[key] for key in _GENES if genome.get(key) is not None}
    recipe: dict[str, Any] = {
        "mergepipe": 1,
        "models": references.models,
        "merge": _merge(genome, labels, base, document, problems),
        "evaluate": [entry for entry, _ in evaluations],
        "search": {
            "preset": "mergekit-evolve",
            "genome": genes,
            "objective": objective,
            **(data.get("search") or {}),  # by --set and --budget
        },
        "output": {"dtype": "bfloat16", **(data.get("output") or {})},
    }
    source = genome.get("tokenizer_source")
    if source == "base":
        recipe["tokenizer"] = base or labels[0]
    elif source:
        place = ("genome", "tokenizer_source")
        recipe["tokenizer"] = source if source == "union" else references.label(source, place)
    return replace(document, data=recipe, origins=_origins(recipe), faults=())


def _merge(
    genome: Mapping[str, Any],
    labels: Sequence[str],
    base: str | None,
    document: Document,
    problems: Problems,
) -> dict[str, Any]:
    method = genome.get("merge_method")
    if method == "slerp":
        if len(labels) != _SLERPED or genome.get("filters") or genome.get("smooth"):
            what = "slerp is searched here of two models, without `filters` and `smooth`"
            problems.add(document.where(("genome",)), what, "take two, or another method")
        base = base if base in labels else labels[0]
    merge: dict[str, Any] = {"method": method, **({"base": base} if base else {})}
    merge["models"] = {label: {} for label in labels if label != base or method == "linear"}
    theirs = METHODS.get(method) if isinstance(method, str) else None
    if theirs is not None and method != "slerp":
        shared = theirs.shared.values()
        merge |= {one.name: native_default(one) for one in shared} | dict(theirs.fixed)
        asked = genome.get("normalize")
        merge["normalize"] = method in _NORMALIZED if asked is None else asked
    return merge


def _warn_of_unknown(
    data: Mapping[str, Any], genome: Mapping[str, Any], document: Document, problems: Problems
) -> None:
    known = (*_READ, "task_search_path")
    unknown: list[tuple[str, ...]] = [("genome", k) for k in genome if k not in (*_MERGE, *_GENES)]
    unknown += [(key,) for key in data if key not in (*known, *_NO_EFFECT)]
    for path in unknown:
        problems.warn(document.where(path), "unknown field, which has no effect")
    for key in _NO_EFFECT:
        if data.get(key):
            problems.warn(document.where((key,)), "has no effect here")
    if "apply_chat_template" not in data:
        what = "tasks are asked without a chat template, by which mergekit-evolve asks"
        fix = "say `apply_chat_template: true` for tasks that are answered in words"
        problems.warn(document.where(()), f"{what}; {fix}")


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
        theirs = {"limit": "limit", "num_fewshot": "num_fewshot", "include": "task_search_path"}
        theirs["chat"] = "apply_chat_template"
        entry |= {key: data[name] for key, name in theirs.items() if data.get(name) is not None}
        found.append((entry, weight))
    return found


def _origins(recipe: Mapping[str, Any]) -> dict[Any, Any]:
    """Say where in the configuration each part of the recipe comes from."""
    shown = {"merge": "genome", "models": "genome", "evaluate": "tasks", "search": "genome"}
    exact = {("search", "genome"): ("genome",), ("merge", "method"): ("genome", "merge_method")}
    return (
        {(key,): (place,) for key, place in shown.items()}
        | exact
        | {(key,): () for key in recipe if key not in shown}
    )
