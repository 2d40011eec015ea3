"""Methods that mask task vectors: Localize-and-Stitch, EMR, PCB and CABS, by hand and by brute force."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from whole_models import merge_model

from mergepipe.method import Target, apply, block_ranges, strictest

GOLDEN = json.loads((Path(__file__).parent / "golden" / "methods.json").read_text())
SHAPES = {"embed": (7, 4), "up": (5, 6), "norm": (5,), "down": (6, 5), "head": (7, 4)}
ROLES = {"embed": "embedding", "head": "head"}


def vector(*values):
    return torch.tensor(values, dtype=torch.float32)


def drawn(seed, *, lacking=()):
    """A base and three models; `b` lacks some tensors."""
    draws = torch.Generator().manual_seed(seed)
    base, *rest = (
        {k: torch.randn(s, generator=draws) for k, s in SHAPES.items()} for _ in range(4)
    )
    models = dict(zip("abc", rest, strict=True))
    models["b"] = {k: v for k, v in models["b"].items() if k not in lacking}
    return base, models


def flat(tensors, names):
    """The tensors one after the other; those that are missing as 0."""
    parts = [tensors.get(name, torch.zeros(SHAPES[name])) for name in names]
    return torch.cat([part.flatten() for part in parts]).double().numpy()


def deltas_of(base, models, names):
    """One row per model over all `names`; NaN where it lacks a tensor."""
    rows = []
    for model in models.values():
        parts = [
            (model[name] - base[name]).flatten()
            if name in model
            else torch.full(base[name].shape, math.nan).flatten()
            for name in names
        ]
        rows.append(torch.cat(parts).double().numpy())
    return np.stack(rows)


# Localize-and-Stitch.


def stitched(base, models, densities, names):
    """The update by sorting, over all `names` as one vector."""
    kept = []
    for delta, density in zip(deltas_of(base, models, names), densities, strict=True):
        has = np.flatnonzero(~np.isnan(delta))
        count = max(1, int(round(density * 1000) * len(has) // 1000))
        kept.append(np.zeros_like(delta))
        chosen = has[np.argsort(-np.abs(delta[has]), kind="stable")[:count]]
        kept[-1][chosen] = delta[chosen]
    return sum(kept) / np.maximum((np.stack(kept) != 0).sum(0), 1)


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("lacking", [(), ("head",), ("norm", "head")])
@pytest.mark.parametrize("block", [4, 1 << 20])
def test_the_largest_of_the_model_are_stitched(embeddings, lacking, block):
    base, models = drawn(1, lacking=lacking)
    densities = (0.2, 0.35, 0.5)
    each = {k: {"density": d} for k, d in zip(models, densities, strict=True)}
    merged = merge_model(
        "localize_and_stitch", base, models, each, roles=ROLES, block=block, embeddings=embeddings
    )
    # Of equal magnitudes the first by tensor name would stay; these have none.
    names = [name for name in SHAPES if embeddings or name not in ROLES]
    expected = flat(base, names) + stitched(base, models, densities, names)
    assert_close(flat(merged, names), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_embeddings_and_the_head_stay_the_bases(scope):
    base, models = drawn(2)
    merged = merge_model("localize_and_stitch", base, models, roles=ROLES, scope=scope)
    assert [k for k in base if merged[k].equal(base[k])] == ["embed", "head"]


def test_three_models_that_overlap_are_divided_by_three():
    models = {"a": vector(3, 0), "b": vector(6, 0), "c": vector(-3, 1)}
    each = {label: {"density": 0.5} for label in models}
    merged = apply("localize_and_stitch", vector(0, 0), models, each)
    assert merged.tolist() == [2, 0]


def test_a_parameter_that_did_not_change_is_not_kept():
    models = {"a": vector(0, 2), "b": vector(4, 2)}
    each = {label: {"density": 1.0} for label in models}
    assert apply("localize_and_stitch", vector(0, 0), models, each).tolist() == [4, 2]


# EMR.


def of_task(label, models=("a", "b", "c")):
    return {k: {"task": k == label} for k in models}


@pytest.mark.parametrize("at", range(3))
def test_the_scale_of_a_task_is_the_golden_one(at):
    base, experts = torch.tensor(GOLDEN["base"]), map(torch.tensor, GOLDEN["experts"])
    models, case = dict(zip("abc", experts, strict=True)), GOLDEN["cases"]["emr_unified"]
    update = apply("emr", base, models, of_task("abc"[at])) - base
    unified, delta = torch.tensor(case["out"]), models["abc"[at]] - base
    masked = unified.where(unified.sign() == delta.sign(), 0.0)
    assert_close(update, masked * case["params"]["lambda_i"][at], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lacking", [(), ("up", "embed")])
def test_the_model_of_a_task_moves_as_far_as_its_expert(lacking):
    base, models = drawn(3, lacking=lacking)
    merged = merge_model("emr", base, models, of_task("b"), block=11)
    moved = np.abs(deltas_of(base, {"b": merged}, models["b"])).sum()
    assert moved == pytest.approx(np.abs(deltas_of(base, models, models["b"])[1]).sum(), rel=1e-6)
    assert all(merged[name].equal(base[name]) for name in lacking)


def test_the_reference_weighs_every_tensor_by_its_mean():
    base = {"x": torch.zeros(1), "y": torch.zeros(4)}
    models = {
        "a": {"x": vector(2), "y": vector(1, 1, 1, 1)},
        "b": {"x": vector(4), "y": vector(3, 3, 3, -5)},
    }
    scales = [
        merge_model("emr", base, models, of_task("a", models), compat=compat)["x"].item() / 4
        for compat in ("none", "reference")
    ]
    # Sums: (2 + 4) / (4 + 9). Means: (2 + 1) / (4 + 9/4).
    assert scales == pytest.approx([6 / 13, 12 / 25])


def test_a_sum_of_zero_elects_minus():
    models = {"a": vector(3, 1), "b": vector(-2, -1), "c": vector(-1, 0)}
    assert apply("emr", vector(0, 0), models).tolist() == [-2, -1]


def test_the_model_of_a_task_whose_expert_is_the_base_is_the_base():
    models = {"a": vector(0, 0), "b": vector(-2, 1)}
    assert apply("emr", vector(0, 0), models, of_task("a", models)).tolist() == [0, 0]


def test_two_tasks_are_refused():
    models = {"a": vector(1), "b": vector(2)}
    with pytest.raises(ValueError, match="one task"):
        apply("emr", vector(0), models, {label: {"task": True} for label in models})


# PCB.


def norm(values):
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else values * 0


def balanced(deltas, weights, ratio, quantile):
    """The authors' computation in fp64, of rows without holes or with NaN where a tensor lacks."""
    total, count, clipped, scores = np.nansum(deltas, 0), len(deltas), [], []
    for delta in deltas:
        has = ~np.isnan(delta)
        size = np.abs(delta[has])
        ends = np.sort(size)[[int(size.size * quantile), int(size.size * (1 - quantile) - 1)]]
        size = np.clip(size, *ends)
        score = np.exp(count * norm(size) ** 2) * np.tanh(delta[has] * total[has])
        floor = np.sort(score)[int(size.size * (1 - ratio))]
        clipped.append(np.zeros_like(delta))
        scores.append(np.zeros_like(delta))
        clipped[-1][has] = np.sign(delta[has]) * size
        scores[-1][has] = norm(np.maximum(score, floor))
    summed = sum(s * w * x for s, w, x in zip(scores, weights, clipped, strict=True))
    return summed / np.maximum(sum(scores), 1e-12)


@pytest.mark.parametrize("block", [4, 1 << 20])
@pytest.mark.parametrize(("ratio", "quantile"), [(0.1, 1e-4), (0.5, 0.0625), (0.9, 0.0)])
@pytest.mark.parametrize("lacking", [(), ("up", "head")])
def test_parameters_compete_over_the_whole_model(ratio, quantile, lacking, block):
    base, models = drawn(4, lacking=lacking)
    weights = (0.5, 1.0, 2.0)
    each = {k: {"weight": w} for k, w in zip(models, weights, strict=True)}
    merged = merge_model(
        "pcb", base, models, each, block=block, ratio=ratio, quantile=quantile, lambda_=0.75
    )
    update = balanced(deltas_of(base, models, SHAPES), weights, ratio, quantile)
    assert_close(flat(merged, SHAPES), flat(base, SHAPES) + 0.75 * update, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_where_all_elements_are_alike_nobody_competes(ratio):
    base, models = torch.zeros(9), {"a": torch.ones(9), "b": torch.ones(9)}
    assert apply("pcb", base, models, ratio=ratio).equal(base)


def test_a_tensor_may_be_ranked_by_itself():
    base, models = drawn(5)
    merged = merge_model("pcb", base, models)
    alone = {
        k: apply("pcb", base[k], {label: one[k] for label, one in models.items()}, scope="tensor")
        for k in base
    }
    assert not all(merged[k].equal(alone[k]) for k in base)
    assert all(not alone[k].equal(base[k]) for k in base if base[k].numel() > 10)


def test_many_models_do_not_overflow():
    base, draws = torch.zeros(50), torch.Generator().manual_seed(0)
    models = {str(i): torch.randn(50, generator=draws) for i in range(100)}
    assert apply("pcb", base, models, ratio=0.5).isfinite().all()


# CABS.


def in_turn(deltas, n, m):
    """What each model keeps, group by group."""
    taken, kept = np.zeros(len(deltas[0]), bool), []
    for delta in deltas:
        free = np.where(taken, 0, delta)
        kept.append(np.zeros_like(free))
        for start in range(0, len(free), m):
            group = free[start : start + m]
            chosen = np.argsort(-np.abs(group), kind="stable")[: math.ceil(n * len(group) / m)]
            kept[-1][start + chosen] = group[chosen]
        taken |= kept[-1] != 0
    return kept


@pytest.mark.parametrize("block", [3, 24, 1 << 20])
@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 7), (3, 10), (5, 5), (0, 3), (64, 256)])
def test_models_choose_in_turn_in_every_group(n, m, block):
    draws = np.random.default_rng(n)
    deltas = draws.integers(-3, 4, (3, 47)).astype(np.float32)  # whole numbers: ties abound
    models = dict(zip("abc", map(torch.from_numpy, deltas), strict=True))
    each = {k: {"weight": w} for k, w in zip("abc", (1.0, 0.5, 2.0), strict=True)}
    merged = apply("cabs", torch.zeros(47), models, each, n=n, m=m, lambda_=2.0, block=block)
    a, b, c = in_turn(deltas, n, m)
    assert merged.tolist() == (2 * (a + 0.5 * b + 2 * c)).tolist()


def test_where_there_is_room_every_parameter_is_of_one_model():
    draws = torch.Generator().manual_seed(0)
    models = {label: torch.randn(256, generator=draws) for label in "abcd"}
    merged = apply("cabs", torch.zeros(256), models, n=16, m=64, lambda_=1.0)
    assert [int((merged == model).sum()) for model in models.values()] == [64] * 4


def test_the_order_of_models_decides():
    base, models = vector(0, 0), {"a": vector(3, 1), "b": vector(5, 2)}
    backwards = {label: models[label] for label in "ba"}
    first = apply("cabs", base, models, n=1, m=2, lambda_=1.0)
    second = apply("cabs", base, backwards, n=1, m=2, lambda_=1.0)
    assert (first.tolist(), second.tolist()) == ([3, 2], [5, 1])


def test_keeping_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="n = 3 > m = 2"):
        apply("cabs", vector(0), {"a": vector(1)}, n=3, m=2)


# Blocks that hold whole groups.


@pytest.mark.parametrize("group", [1, 7, 256, 5000])
def test_blocks_start_at_multiples_of_a_group(group):
    ranges = list(block_ranges(Target("t", (30, 100)), group, 512))
    assert all(start % group == 0 for start, _ in ranges)
    assert [start for start, _ in ranges[1:]] == [stop for _, stop in ranges[:-1]]
    assert (ranges[0][0], ranges[-1][1]) == (0, 3000)


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        (["anywhere", 6], 6),
        ([4, 6], 12),
        (["rows", 6], 30),
        ([6, "matrices"], "matrices"),
        (["anywhere", "rows"], "rows"),
    ],
)
def test_a_cut_does_for_groups_and_rows(cuts, expected):
    assert strictest(cuts, Target("t", (4, 10))) == expected
