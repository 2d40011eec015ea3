"""LiNeS: what was merged is scaled by its layer's depth."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from whole_models import merge_model

from mergepipe.method import apply

NAMES = ["embed", *(f"model.layers.{n}.mlp.weight" for n in range(5)), "norm"]
DEPTHS = [0, 0, 0.25, 0.5, 0.75, 1, 0]


def drawn(names=NAMES, count=3):
    draws = torch.Generator().manual_seed(0)
    base, *models = (
        {k: torch.randn(4, 3, generator=draws) for k in names} for _ in range(count + 1)
    )
    return base, dict(zip("abc", models, strict=False))


def scales(base, models, method="task_arithmetic", block=1 << 20, **values):
    """By how much each tensor's update is scaled."""
    plain = merge_model(method, base, models)
    scaled = merge_model(method, base, models, then=[("lines", values)], block=block)
    found = []
    for name in base:
        before, after = (model[name] - base[name] for model in (plain, scaled))
        found.append(((before * after).sum() / before.square().sum()).item())
        assert_close(after, found[-1] * before)
    return found


def test_the_scale_grows_with_the_layer_and_is_alpha_outside():
    found = scales(*drawn(), alpha=0.25, beta=0.5)
    assert found == pytest.approx([0.25 + 0.5 * depth for depth in DEPTHS], rel=1e-5)


@pytest.mark.parametrize("block", [5, 1 << 20])
def test_by_default_a_sum_of_task_vectors_starts_at_one_nth_and_ends_at_one(block):
    found = scales(*drawn(), block=block)
    assert found == pytest.approx([1 / 3 + 2 / 3 * depth for depth in DEPTHS], rel=1e-5)


def norm(tensors):
    return torch.cat([one.flatten() for one in tensors]).double().norm().item()


def test_alpha_is_a_ratio_of_norms_over_the_model():
    base, models = drawn()
    merged = merge_model("ties", base, models)
    summed = norm(sum(model[k] - base[k] for model in models.values()) for k in base)
    alpha = summed / norm(merged[k] - base[k] for k in base) / 3
    assert scales(base, models, "ties", beta=0.0) == pytest.approx([alpha] * len(base), rel=1e-5)


def test_one_expert_stays_as_it_is():
    base, models = drawn(count=1)
    assert scales(base, models) == pytest.approx([1] * len(base), rel=1e-5)


def test_every_stack_counts_its_own_layers():
    names = ["encoder.0.w", "encoder.1.w", "decoder.0.w", "decoder.1.w", "decoder.2.w"]
    found = scales(*drawn(names), alpha=0.5, beta=0.5)
    assert found == pytest.approx([0.5, 1, 0.5, 0.75, 1], rel=1e-5)


def test_a_stack_of_one_layer_is_scaled_by_alpha():
    found = scales(*drawn(["layers.0.w"]), alpha=0.5, beta=0.25)
    assert found == pytest.approx([0.5], rel=1e-5)


def test_experts_that_cancel_leave_the_base():
    base, delta = torch.ones(3), torch.tensor([1.0, 2, 3])
    models = {"a": base + delta, "b": base - delta}
    assert apply("task_arithmetic", base, models, then=[("lines", {})]).equal(base)
