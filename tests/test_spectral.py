"""Methods on matrices: experts of low rank, zero experts, and what each formula promises."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mergepipe.method import apply, load_post_step

GOLDEN = json.loads((Path(__file__).parent / "golden" / "methods.json").read_text())
SIZE = 256
ZERO = torch.zeros(SIZE, SIZE)
SPECTRAL = ("iso_c", "iso_cts", "tsv_m", "wudi", "resmerge")
spectral = pytest.mark.parametrize("name", SPECTRAL)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(seed, rank=8):
    return draw(seed, SIZE, rank) @ draw(seed + 100, rank, SIZE)


LOW = {str(i): low_rank(i) for i in range(4)}
TOTAL = sum(LOW.values())
FULL = {str(i): draw(i, SIZE, SIZE) for i in range(3)}


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def outside(update):
    """The share of the energy in directions of rows that no expert uses."""
    basis = torch.linalg.svd(torch.cat(list(LOW.values()), 1), full_matrices=False)[0][:, :32]
    return 1 - float((basis.T @ update).norm() ** 2 / update.norm() ** 2)


# Experts of low rank: four of rank 8, so that 32 of 256 directions are used.


@pytest.mark.parametrize(
    ("compat", "norm", "noise"), [("none", 0.97, 0.0), ("reference", 0.34, 0.875)]
)
def test_iso_c_flattens_only_directions_that_experts_use(compat, norm, noise):
    merged = apply("iso_c", ZERO, LOW, compat=compat)
    assert float(merged.norm() / TOTAL.norm()) == pytest.approx(norm, abs=0.01)
    assert outside(merged) == pytest.approx(noise, abs=1e-3)


@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "tsv_m"])
def test_only_the_reference_puts_noise_where_no_expert_is(name):
    assert outside(apply(name, ZERO, LOW)) == pytest.approx(0, abs=1e-5)
    assert outside(apply(name, ZERO, LOW, compat="reference")) > 0.1


def test_tsv_m_recovers_every_task_unless_meaningless_vectors_take_part():
    merged = apply("tsv_m", ZERO, LOW)
    for delta in LOW.values():
        assert float((merged * delta).sum() / delta.square().sum()) > 0.96
    assert cosine(merged, apply("tsv_m", ZERO, LOW, compat="reference")) < 0.9


def test_two_copies_of_an_expert_are_one_direction_to_tsv_m():
    delta = low_rank(0)
    assert_close(apply("tsv_m", ZERO, {"a": delta, "b": delta}), delta, rtol=1e-4, atol=1e-4)


def test_iso_c_gives_every_direction_of_the_sum_the_same_singular_value():
    values = torch.linalg.svdvals(apply("iso_c", ZERO, FULL).double())
    mean = torch.linalg.svdvals(sum(FULL.values()).double()).mean()
    assert_close(values, mean.expand(SIZE), rtol=1e-5, atol=0)


# Every method.


@spectral
def test_what_is_no_matrix_gets_the_mean(name):
    base, models = torch.zeros(6), {"a": draw(1, 6), "b": draw(2, 6)}
    assert_close(apply(name, base, models), sum(models.values()) / 2)


@spectral
@pytest.mark.parametrize("role", ["embedding", "head"])
def test_tables_are_taken_apart_only_if_asked_for(name, role):
    base, models = torch.zeros(6, 4), {"a": draw(1, 6, 4), "b": draw(2, 6, 4)}
    assert_close(apply(name, base, models, role=role), sum(models.values()) / 2)
    asked = apply(name, base, models, role=role, embeddings=True)
    assert torch.equal(asked, apply(name, base, models))


@spectral
def test_stacked_matrices_are_merged_one_by_one(name):
    models = {"a": draw(1, 3, 6, 4), "b": draw(2, 3, 6, 4)}
    merged = apply(name, torch.zeros(3, 6, 4), models)
    for i in range(3):
        alone = apply(name, torch.zeros(6, 4), {k: m[i] for k, m in models.items()})
        assert torch.equal(merged[i], alone)


# WUDI.


def interference(merged):
    parts = [
        ((merged - d) @ d.T).square().sum() / d.square().sum()
        for d in map(torch.Tensor.double, LOW.values())
    ]
    return float(sum(parts))


def test_wudi_walks_towards_the_minimum_that_closed_form_finds():
    merged = apply("wudi", ZERO, LOW).double()
    lowest = apply("wudi", ZERO, LOW, solver="closed_form").double()
    assert interference(lowest) < 1e-6 * interference(merged)
    assert interference(merged) < interference(TOTAL.double())


def test_wudi_leaves_an_expert_of_zeros_out():
    assert torch.equal(apply("wudi", ZERO, LOW), apply("wudi", ZERO, LOW | {"zero": ZERO}))


# SVC.


def test_svc_is_the_reference_implementation():
    base = torch.tensor(GOLDEN["base"])
    models = {str(i): torch.tensor(v) for i, v in enumerate(GOLDEN["experts"])}
    merged = apply("task_arithmetic", base, models, lambda_=0.3, then=[("svc", {})])
    expected = torch.tensor(GOLDEN["cases"]["svc_delta"]["out"])
    assert_close(merged - base, expected, rtol=1e-5, atol=5e-7)


def test_svc_leaves_a_single_experts_own_task_vector():
    merged = apply("task_arithmetic", ZERO, {"a": FULL["0"]}, then=[("svc", {})])
    assert_close(merged, FULL["0"], rtol=1e-5, atol=1e-5)


def test_svc_of_copies_gives_one_of_them():
    models = {"a": FULL["0"], "b": FULL["0"]}
    merged = apply("task_arithmetic", ZERO, models, then=[("svc", {})])
    assert_close(merged, FULL["0"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("role", ["embedding", "head"])
def test_svc_leaves_tables_and_vectors_as_merged(role):
    models = {"a": draw(1, 6, 4), "b": draw(2, 6, 4)}
    plain = apply("task_arithmetic", torch.zeros(6, 4), models, role=role)
    after = apply("task_arithmetic", torch.zeros(6, 4), models, role=role, then=[("svc", {})])
    assert torch.equal(after, plain)


def test_the_worked_example_of_svc_is_true():
    import mergepipe.post_steps.svc as module

    assert load_post_step("svc").summary.endswith(".")
    assert doctest.testmod(module).failed == 0
