"""A report for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mergepipe.checkpoint import Checkpoint
from mergepipe.inspect.advice import THRESHOLDS, advise
from mergepipe.inspect.report import Report, TensorSums
from mergepipe.inspect.sums import Sums, model_numbers, pair_numbers

__all__ = ["as_json"]


def as_json(report: Report) -> dict[str, Any]:
    """Give everything found: totals, by kind, by layer, and of every tensor; shares are 0 to 1."""
    return {
        "base": _model(report.base),
        "models": [_model(one) for one in report.models],
        "total": _numbers(report, report.total),
        "kinds": _groups(report, "kind", report.kinds),
        "layers": _groups(report, "layer", report.layers),
        "tensors": [_tensor(report, one) for one in report.tensors],
        "differences": [
            {"model": x.model, "kind": x.code, "text": x.text, "tensors": list(x.tensors)}
            for x in report.differences
        ],
        "advice": [
            {
                "kind": one.code,
                "text": one.text,
                "thresholds": {name: THRESHOLDS[name].value for name in one.thresholds},
                "cases": [
                    {"models": list(case.models), "numbers": dict(case.numbers)}
                    for case in one.cases
                ],
            }
            for one in advise(report)
        ],
        "warnings": list(report.warnings),
    }


def _model(one: Checkpoint) -> dict[str, Any]:
    return {
        "label": one.label,
        "folder": str(one.folder),
        "tensors": len(one.tensors),
        "parameters": sum(stored.numel for stored in one.tensors.values()),
    }


def _groups(report: Report, key: str, groups: Mapping[str, Sums]) -> list[dict[str, Any]]:
    return [{key: name, **_numbers(report, sums)} for name, sums in groups.items()]


def _numbers(report: Report, sums: Sums) -> dict[str, Any]:
    """Give the numbers of every model and pair that has one of the tensors."""
    has = [i for i in range(len(report.models)) if sums.common[i, i]]
    return {
        "tensors": sums.tensors,
        "models": {report.labels[i]: asdict(model_numbers(sums, i)) for i in has},
        "pairs": [
            {
                "models": [report.labels[i], report.labels[j]],
                **asdict(pair_numbers(sums, i, j)),
            }
            for i, j in report.pairs
            if sums.common[i, j]
        ],
    }


def _tensor(report: Report, one: TensorSums) -> dict[str, Any]:
    step, numbers = one.step, _numbers(report, one.sums)
    return {
        "tensor": step.name,
        "kind": one.kind,
        "layer": one.layer,
        "shape": list(step.shape),
        "dtypes": {x.label: x.stored.dtype for x in step.all_inputs},
        "models": numbers["models"],
        "pairs": numbers["pairs"],
        "not_finite": list(one.not_finite),
    }
