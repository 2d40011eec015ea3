"""Any task of lm-evaluation-harness: built in, or a task file of yours.

The harness makes the prompts and judges the answers (Gao et al.,
https://github.com/EleutherAI/lm-evaluation-harness); whatever can be asked here is asked, merges in
memory and servers too. Metrics have its names (`acc,none`: metric, filter), with the task before
them where there are several; errors are worked out here from its items. Nothing is taken from the
harness's own cache of answers, which does not know one model from another.

`tasks` are names of tasks or groups in the folder `include`, YAML files, or names of what is built
in (to look for those takes a minute or two). Relative `data_files` are relative to the recipe.
Nothing is downloaded unless `download: true`. A task file may hold Python, so a recipe needs
--allow-commands; and since it may read any file, results are not kept.

Install it by `pip install 'mergepipe[eval]'`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt, model_validator
from typing_extensions import Self

from mergepipe.errors import InputError, MergepipeError, Problem, did_you_mean, printable
from mergepipe.evaluate import Context, Item, Metric, Result, mean, ratio
from mergepipe.evaluate.folder import DataFolder
from mergepipe.evaluate.harness import as_harness_model, harness, kept_still
from mergepipe.model import Model

PERMISSION = "commands"

_SEED = 1234  # of the harness, for examples that are drawn
# Metrics of sums: their scale, and whether they are e to it. Items are (ln p, size).
_RATIOS: Mapping[str, tuple[float, bool]] = MappingProxyType(
    {
        "bits_per_byte": (1 / math.log(2), False),
        "byte_perplexity": (1.0, True),
        "word_perplexity": (1.0, True),
    }
)
_UNITS = {"bits_per_byte": "bits/byte", "acc": "correct", "acc_norm": "correct"}
_UNITS |= {"exact_match": "correct", "byte_perplexity": "perplexity"}


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`num_fewshot` is how many solved examples come first, where a task does not forbid it.

    `chat` asks by the model's chat template.
    """

    tasks: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, strict=False)
    ]
    include: DataFolder | None = None
    num_fewshot: NonNegativeInt | None = None
    chat: bool = False
    download: bool = False

    @model_validator(mode="after")
    def _is_installed(self) -> Self:
        """Say so before anything is merged, not after."""
        if find_spec("lm_eval") is None:
            what = "lm-evaluation-harness is not installed: pip install 'mergepipe[eval]'"
            raise ValueError(what)
        return self


def cached(_: Parameters) -> bool:
    """Tell that results are not kept: what a task reads is not known."""
    return False


def evaluate(model: Model, context: Context[Parameters]) -> Result:
    """Have the harness run the tasks; items are their documents."""
    parameters = context.parameters
    with kept_still(context.seed, download=parameters.download), _inside(context.folder):
        tasks = _load(parameters)
        chosen = {}
        for name, task in tasks.items():
            if parameters.num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=parameters.num_fewshot)
            task.set_fewshot_seed(seed=_SEED + context.seed)
            documents = range(len(task.eval_docs))
            chosen[name] = list(context.choose({f"{name}/{n}": n for n in documents}).values())
        found = _run(as_harness_model(model, context, chat=parameters.chat), tasks, chosen, context)
    return _result([_read(found, name) for name in tasks])


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, to which a task's own paths are relative."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _load(parameters: Parameters) -> dict[str, Any]:
    """Load the tasks, those of groups too, by name."""
    include = None if parameters.include is None else str(parameters.include)
    tasks = harness("lm_eval.tasks")
    manager = tasks.TaskManager(include_path=include, include_defaults=False)
    if not all(_is_known(name, manager) for name in parameters.tasks):
        manager = _with_built_in(include)
    found: dict[str, Any] = {}
    for name in parameters.tasks:
        if not _is_known(name, manager):
            what = f"no task is named '{name}'{did_you_mean(name, manager.all_tasks)}"
            raise InputError(Problem("lm_eval", printable(what, 300)))
        with _named(name):
            found |= manager.load([name])["tasks"]
    return found


@cache
def _with_built_in(include: str | None) -> Any:
    """Look through some ten thousand files."""
    return harness("lm_eval.tasks").TaskManager(include_path=include)


def _is_known(name: str, manager: Any) -> bool:
    return name in manager.all_tasks or (name.endswith((".yaml", ".yml")) and Path(name).is_file())


@contextmanager
def _named(task: str) -> Iterator[None]:
    """Say in words what a task lacks."""
    try:
        yield
    except MergepipeError:
        raise
    except Exception as error:  # whatever the harness, its libraries and task files raise
        kinds = {kind.__name__ for kind in type(error).__mro__}
        away = kinds & {"ConnectionError", "DatasetNotFoundError", "OfflineModeIsEnabled"}
        hint = "its data are on the Hugging Face hub: `download: true` fetches them"
        what = f"cannot be used: {type(error).__name__}: {printable(error, 300)}"
        raise InputError(Problem(f"lm_eval task {task}", what, hint if away else "")) from error


def _run(
    asked: Any, tasks: Mapping[str, Any], chosen: dict[str, list[int]], context: Context[Parameters]
) -> dict[str, Any]:
    with _named(", ".join(tasks)):
        found: dict[str, Any] = harness("lm_eval.evaluator").evaluate(
            lm=asked,
            task_dict={"tasks": dict(tasks), "groups": {}, "group_map": {}},
            samples=chosen,
            bootstrap_iters=0,
            apply_chat_template=context.parameters.chat,
            fewshot_as_multiturn=context.parameters.chat,
        )
    return found


@dataclass(frozen=True, slots=True)
class Told:
    """What the harness found of one task: metrics, which way is up, and values by document."""

    task: str
    metrics: Mapping[str, float]
    upward: Mapping[str, bool]
    documents: Mapping[int, dict[str, float]]


def _read(found: Mapping[str, Any], task: str) -> Told:
    said, upward = found["results"][task], found["higher_is_better"].get(task, {})
    metrics = {
        name: float(value)
        for name, value in said.items()
        if isinstance(value, int | float) and "," in name and "_stderr," not in name
    }
    documents: dict[int, dict[str, float]] = {}
    for sample in found["samples"][task]:
        values = documents.setdefault(sample["doc_id"], {})
        for name in sample["metrics"]:
            values |= _values(name, f"{name},{sample['filter']}", sample[name])
    names = {name: name.partition(",")[0] for name in metrics}
    up = {name: upward.get(metric) is not False for name, metric in names.items()}
    return Told(task, metrics, up, documents)


def _values(metric: str, name: str, value: Any) -> dict[str, float]:
    """Read a document's value: a number, or ln p and a size."""
    if metric in _RATIOS:
        return {name: -float(value[0]), f"{name} of": float(value[1])}
    try:
        return {name: float(value)}
    except (TypeError, ValueError):  # a pair for F1, texts for BLEU: only their whole is known
        return {}


def _result(told: Sequence[Told]) -> Result:
    """Put tasks together; an item has 0 for what other tasks' items have, which adds nothing."""
    prefixes = {one.task: f"{one.task}/" if len(told) > 1 else "" for one in told}
    own = {
        f"{prefixes[one.task]}{number}": {
            f"{prefixes[one.task]}{name}": value for name, value in ({"of": 1.0} | values).items()
        }
        for one in told
        for number, values in one.documents.items()
    }
    nothing = {name: 0.0 for values in own.values() for name in values}
    items = [Item(name, nothing | values) for name, values in own.items()]
    metrics = {
        f"{prefixes[one.task]}{name}": _metric(one, name, prefixes[one.task], items)
        for one in told
        for name in one.metrics
    }
    return Result(metrics, tuple(items))


def _metric(told: Told, name: str, prefix: str, items: Sequence[Item]) -> Metric:
    """Give a metric, with how it comes from the items where that gives the harness's value."""
    metric, value, up = name.partition(",")[0], told.metrics[name], told.upward[name]
    unit, count = _UNITS.get(metric, metric.replace("_", " ")), len(told.documents)
    key = f"{prefix}{name}"
    if key in items[0].values:
        if metric in _RATIOS:
            scale, exponential = _RATIOS[metric]
            ours = ratio(items, key, f"{key} of", unit=unit, scale=scale, exponential=exponential)
        elif prefix:
            ours = ratio(items, key, f"{prefix}of", unit=unit, higher_is_better=up)
        else:
            ours = mean(items, key, unit=unit, higher_is_better=up)
        if math.isclose(ours.value, value, rel_tol=1e-6, abs_tol=1e-12):
            return replace(ours, n=count)
    return Metric(value, up, count, unit)
