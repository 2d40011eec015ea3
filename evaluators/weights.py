"""How far a model's weights are from a base's, and from other models'; no data, nothing is asked.

With τ = θ − θ_0, over all tensors that have the same name and shape:

    relative_norm          ‖τ‖ / ‖θ_0‖                                          the main metric
    changed                share of elements that are not the base's
    not_finite             tensors that hold NaN or infinity, and are left out of the rest
    outliers               tensors whose ‖τ‖/‖θ_0‖ is more than 4 standard deviations above the mean

and, with `others`, the models that it was merged from, say, by their labels:

    cosine LABEL           between τ and τ_LABEL
    sign_conflict LABEL    of the elements that both changed, the share with opposite signs
    share LABEL            c of the least-squares fit τ ≈ Σ c_l τ_l
    residual               ‖τ − Σ c_l τ_l‖² / ‖τ‖²: what no mixture of the others explains
    norm_ratio             ‖τ‖ / mean ‖τ_l‖
    others_sign_conflict   of the elements that two others changed, the share with opposite signs

(Yadav et al., TIES-Merging, 2023, https://arxiv.org/abs/2306.01708, of the conflicts.) It is what
`mergepipe inspect` measures. A merge in memory is looked at through a temporary folder. But for
`not_finite` none of this is better one way or the other, and nothing is ranked by it: models can be
near and bad, or far and good.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add
from pathlib import Path
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate import Context, Item, Located, Metric, Result, mean, ratio
from mergepipe.evaluate.folder import DataFolder
from mergepipe.model import Ability, Model

if TYPE_CHECKING:
    from mergepipe.inspect import Report, Sums

NEEDS: frozenset[Ability] = frozenset({"weights"})

_OUTLIER = 4.0  # standard deviations
_UNITS = {"cosine": "cosine", "sign_conflict": "of both changed", "share": "× τ"}


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`base` is a folder, `others` are folders by label."""

    base: DataFolder
    others: Annotated[dict[str, DataFolder], Field(max_length=32)] = {}


def evaluate(model: Model, context: Context[Parameters]) -> Result:
    """Compare the weights; items are the tensors of the base."""
    from mergepipe.inspect import inspect, open_inputs

    parameters = context.parameters
    labels = tuple(parameters.others)
    with _folder_of(model) as folder:
        paths = [parameters.base, *parameters.others.values(), folder]
        report = inspect(open_inputs([str(path) for path in paths]))
        items, chosen = _items(report, context)
    total = reduce(add, chosen)
    metrics = _own(total, len(labels), items)
    return Result(metrics | _against(total, labels, len(items)), tuple(items))


@contextmanager
def _folder_of(model: Model) -> Iterator[Path]:
    """Give the folder of a model; one that is only in memory gets one for the moment."""
    location = model.location if isinstance(model, Located) else {}
    module: Any = getattr(model, "module", None)
    if "path" in location:
        yield Path(location["path"])
    elif module is not None:
        with TemporaryDirectory(prefix="mergepipe-") as scratch:
            with _without_bars():
                module.save_pretrained(scratch)
            yield Path(scratch)
    else:
        raise InputError(Problem(model.name, "its weights are in no folder and not in memory"))


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from drawing how far it is."""
    from transformers.utils import logging

    bars: Any = logging  # which is untyped
    drawn = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            bars.enable_progress_bar()


def _items(report: Report, context: Context[Parameters]) -> tuple[list[Item], list[Sums]]:
    """Give what is known of each tensor; the model is the last of the report's."""
    from mergepipe.inspect import model_numbers

    last = len(report.labels) - 1
    tensors = context.choose({one.step.name: one for one in report.tensors})
    items = []
    for name, one in tensors.items():
        found = model_numbers(one.sums, last)
        values = {
            "norm": found.norm,
            "changed": float(one.sums.both[last, last]),
            "elements": float(found.elements),
            "not_finite": float(report.labels[last] in one.not_finite),
        }
        relative = found.relative_norm
        items.append(Item(name, values | ({} if relative is None else {"relative_norm": relative})))
    return items, [one.sums for one in tensors.values()]


def _own(total: Sums, at: int, items: Sequence[Item]) -> dict[str, Metric]:
    """Give what holds of the model and its base alone."""
    from mergepipe.inspect import model_numbers

    found, count = model_numbers(total, at), len(items)
    not_finite = mean(items, "not_finite", unit="tensors", higher_is_better=False)
    metrics = {}
    if found.relative_norm is not None:
        metrics["relative_norm"] = Metric(found.relative_norm, None, count, "of the base's norm")
    if found.elements:
        metrics["changed"] = ratio(
            items, "changed", "elements", unit="of elements", higher_is_better=None
        )
    metrics["not_finite"] = Metric(round(not_finite.value * count), False, count, "tensors")
    metrics["outliers"] = Metric(_outliers(items), None, count, "tensors")
    return metrics


def _outliers(items: Sequence[Item]) -> int:
    values = [item.values.get("relative_norm", 0.0) for item in items]
    middle, spread = fmean(values), pstdev(values)
    return sum(value - middle > _OUTLIER * spread for value in values)


def _against(total: Sums, labels: Sequence[str], count: int) -> dict[str, Metric]:
    """Give what holds of the model and the others."""
    from mergepipe.inspect import pair_numbers

    at = len(labels)
    values: dict[str, float | None] = {}
    for n, label in enumerate(labels):
        pair = pair_numbers(total, n, at)
        values |= {f"cosine {label}": pair.cosine, f"sign_conflict {label}": pair.conflict}
    values |= _fit(total, labels)
    norms = [math.sqrt(total.products[n, n]) for n in range(at)]
    own = math.sqrt(total.products[at, at])
    if labels:
        values["norm_ratio"] = own / fmean(norms) if any(norms) else None
    both = sum(int(total.both[i, j]) for i in range(at) for j in range(i))
    opposite = sum(int(total.conflict[i, j]) for i in range(at) for j in range(i))
    values["others_sign_conflict"] = opposite / both if both else None
    return {
        name: Metric(value, None, count, _UNITS.get(name.partition(" ")[0], "share"))
        for name, value in values.items()
        if value is not None
    }


def _fit(total: Sums, labels: Sequence[str]) -> dict[str, float | None]:
    """Fit τ by the others' by least squares, from their products: G c = g."""
    at = len(labels)
    square = float(total.products[at, at])
    complete = bool(np.all(total.common == total.common[at, at]))
    if not labels or not square or not complete:  # else the products are over different tensors
        return {}
    gram, along = total.products[:at, :at], total.products[:at, at]
    parts = np.linalg.lstsq(gram, along, rcond=None)[0]
    residual = 1 - float(parts @ along) / square
    found: dict[str, float | None] = {
        f"share {label}": float(part) for label, part in zip(labels, parts, strict=True)
    }
    return found | {"residual": max(residual, 0.0)}
