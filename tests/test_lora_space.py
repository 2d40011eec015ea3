"""KnOTS and Core Space: sums in any basis, and what alignment adds."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mergepipe.method import apply

BASE = torch.zeros(48, 64)
EACH = {"a": {"weight": 0.5}, "b": {"weight": 2.0}, "c": {"weight": -1.0}}
aligned = pytest.mark.parametrize("name", ["knots", "core_space"])


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LOW = {k: draw(i, 48, 4) @ draw(i + 9, 4, 64) for i, k in enumerate("abc")}


@aligned
def test_linear_is_task_arithmetic(name):
    merged = apply(name, BASE, LOW, EACH, combine="linear", lambda_=0.7)
    assert torch.equal(merged, apply("task_arithmetic", BASE, LOW, EACH, lambda_=0.7))


@pytest.mark.parametrize(
    ("name", "combine"), [("knots", "ties"), ("core_space", "ties"), ("core_space", "tsv")]
)
def test_a_single_expert_comes_back_out_of_the_common_space(name, combine):
    merged = apply(name, BASE, {"a": LOW["a"]}, combine=combine)
    assert_close(merged, LOW["a"], rtol=1e-4, atol=1e-4)


@aligned
def test_rotated_rows_give_the_rotated_result(name):
    turn = torch.linalg.qr(draw(5, 48, 48).double())[0]
    turned = {k: (turn @ d.double()).float() for k, d in LOW.items()}
    plain = apply(name, BASE, LOW, combine="ties").double()
    assert_close(
        apply(name, BASE, turned, combine="ties"), (turn @ plain).float(), rtol=1e-3, atol=1e-3
    )


def test_core_space_by_tsv_is_tsv_m_of_experts_of_low_rank():
    assert_close(apply("core_space", BASE, LOW), apply("tsv_m", BASE, LOW), rtol=1e-4, atol=1e-4)


@aligned
def test_what_is_not_aligned_is_merged_by_ties_as_it_is(name):
    each = {k: {"density": 0.5} for k in LOW}
    merged = apply(name, BASE, LOW, each, role="head", combine="ties")
    assert torch.equal(merged, apply("ties", BASE, LOW, each, scope="tensor"))
