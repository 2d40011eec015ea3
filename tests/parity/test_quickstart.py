"""The real models of the quickstart, merged at fp32 by mergekit 0.1.5 and by us."""

from __future__ import annotations

from pathlib import Path

import torch
from both import assert_alike, by_mergekit, by_us
from merges import tensors
from torch.testing import assert_close

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"
EXPERTS = ("german", "python", "arithmetic")
MODELS = {label: QUICKSTART / label for label in ("base", *EXPERTS)}
FP32 = {"dtype": "float32"}


def test_task_arithmetic_gives_what_mergekit_gives(tmp_path):
    each = {label: {"weight": 0.3} for label in EXPERTS}
    theirs = by_mergekit(MODELS, tmp_path, "task_arithmetic", each, base_model="base")
    ours = by_us(MODELS, tmp_path, "task_arithmetic", each, FP32, base="base")
    assert len(ours) > 40
    assert_alike(ours, theirs, rtol=1e-6, atol=1e-7)


def test_ties_differs_from_mergekit_only_where_magnitudes_are_equal_at_the_threshold(tmp_path):
    """bf16 deltas take few values, so many equal the k-th largest; of those mergekit keeps
    whichever its sort leaves in front, we the first by index.
    """
    each = {label: {"weight": 0.7, "density": 0.5} for label in EXPERTS}
    theirs = by_mergekit(MODELS, tmp_path, "ties", each, base_model="base")
    native = {"base": "base", "scope": "tensor", "elect": "mergekit"}
    ours = by_us(MODELS, tmp_path, "ties", each, FP32, **native)
    models = {label: tensors(folder) for label, folder in MODELS.items()}
    compared = 0
    for name, merged in ours.items():
        deltas = [models[label][name].float() - models["base"][name].float() for label in EXPERTS]
        certain = torch.stack([d.abs() != kth_largest(d, 0.5) for d in deltas]).all(dim=0)
        assert_close(merged[certain], theirs[name][certain], rtol=1e-6, atol=1e-7)
        compared += int(certain.sum())
    assert compared > 0.9 * sum(merged.numel() for merged in ours.values())


def kth_largest(delta, density):
    kept = max(1, int(density * delta.numel()))
    return delta.abs().flatten().kthvalue(delta.numel() - kept + 1).values
