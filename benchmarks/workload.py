"""The merges that are timed, in the languages of mergepipe and of mergekit: bf16 in and out.

Both compute in fp32. Parameters are chosen so that both do the same work: mergekit's election,
its rescaling by the L1 norm, its choice of what is normalized.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Values = Mapping[str, float | str | bool]


@dataclass(frozen=True)
class Merge:
    method: str
    each: Values = field(default_factory=dict)  # per expert, in both languages
    shared: Values = field(default_factory=dict)  # in both languages
    ours: Values = field(default_factory=dict)  # what makes mergepipe do as mergekit does
    needs_base: bool = True  # otherwise it is a model like the experts
    one_expert: bool = False
    in_mergekit: bool = True


HALF = {"weight": 1.0, "density": 0.5}
L1 = {"rescale": "l1"}
ELECT = {"elect": "mergekit"}
MERGES = {
    "linear": Merge("linear", {"weight": 1.0}, needs_base=False),
    "slerp": Merge("slerp", shared={"t": 0.4}, one_expert=True),
    "task_arithmetic": Merge("task_arithmetic", {"weight": 1.0}, {"lambda": 0.5}),
    "ties": Merge("ties", HALF, ours={"scope": "tensor", **ELECT}),
    "ties, scope: model": Merge("ties", HALF, ours={"scope": "model"}, in_mergekit=False),
    "dare_ties": Merge("dare_ties", HALF, ours={**L1, **ELECT, "normalize": False}),
    "dare_linear": Merge("dare_linear", HALF, ours=L1),
    "breadcrumbs": Merge("breadcrumbs", {**HALF, "gamma": 0.01}),
    "della": Merge("della", {**HALF, "epsilon": 0.15}, ours={**L1, **ELECT}),
    "sce": Merge("sce", shared={"select_topk": 0.5}),
}


def recipe(merge: Merge, models: Path, experts: int) -> str:
    """A recipe of mergepipe's; JSON is YAML."""
    labels = [f"expert{i}" for i in range(1, experts + 1)]
    used = {label: dict(merge.each) for label in labels}
    body: dict[str, object] = {"method": merge.method, **merge.shared, **merge.ours}
    if merge.needs_base:
        body |= {"base": "base", "models": used}
    else:
        body |= {"models": {"base": dict(merge.each), **used}}
    return json.dumps(
        {
            "mergepipe": 1,
            "models": {label: str(models / label) for label in ("base", *labels)},
            "merge": body,
            "output": {"path": "./out", "dtype": "bfloat16"},
        },
        indent=2,
    )


def mergekit_config(merge: Merge, models: Path, experts: int) -> str:
    """The same merge for mergekit."""
    base = {"model": str(models / "base")}
    entries: list[dict[str, object]] = [
        {"model": str(models / f"expert{i}"), "parameters": dict(merge.each)}
        for i in range(1, experts + 1)
    ]
    config: dict[str, object] = {"merge_method": merge.method, "parameters": dict(merge.shared)}
    if merge.needs_base:
        config["base_model"] = base["model"]
    else:
        entries.insert(0, {**base, "parameters": dict(merge.each)})
    if merge.one_expert:  # mergekit's slerp wants both models in the list
        entries.insert(0, dict(base))
    return json.dumps(
        {**config, "models": entries, "dtype": "float32", "out_dtype": "bfloat16"}, indent=2
    )
