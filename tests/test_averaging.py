"""Averages and interpolations: hand-worked numbers, and what their formulas imply."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import DTYPES, VALUES, bits_of, pack_tensors
from torch.testing import assert_close

from mergepipe.kernels.packed import Out
from mergepipe.kernels.sums import inner_products
from mergepipe.kernels.tiles import KINDS
from mergepipe.method import Block, Scope, Target, apply, load_method, run_survey


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def at_angle(degrees, length=1.0):
    radians = math.radians(degrees)
    return length * torch.tensor([math.cos(radians), math.sin(radians)])


def three(*shape):
    return {label: draw(*shape, seed=seed) for seed, label in enumerate("abc", 1)}


def shares(*weights):
    return {label: {"weight": weight} for label, weight in zip("abc", weights, strict=False)}


# Gram matrices.


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("dtypes", [("BF16",) * 4, ("F32", "F16", "BF16", "F32")], ids=str)
def test_inner_products_are_those_of_the_fp32_rows(dtypes, based):
    rows = [draw(5001, seed=i).to(DTYPES[name]) for i, name in enumerate(dtypes)]
    found = inner_products(pack_tensors(rows, based=based, first=3))
    wide = [row.float() for row in rows]
    wide = [row - wide[0] for row in wide[1:]] if based else wide
    matrix = torch.stack(wide).double().numpy()
    expected = (matrix @ matrix.T)[np.triu_indices(len(matrix))]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("values", ["normal", "whole", "equal", "subnormal"])
@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_a_kernel_gives_the_bits_of_the_definition_on_task_vectors(name, values):
    generator, method = torch.Generator().manual_seed(0), load_method(name)
    base, a, b = (VALUES[values](torch.bfloat16, 5000, generator) for _ in range(3))
    each = {"a": method.each(weight=0.3), "b": method.each(weight=1.1)}
    wide = Block(
        target=Target("t", (5000,)),
        start=0,
        base=base.float(),
        models=(a.float(), b.float()),
        labels=("a", "b"),
        each=tuple(each.values()),
        shared=method.shared(),
    )
    packed = pack_tensors([base, a, b], based=True)
    scope = Scope({"a": 5000, "b": 5000}, each, wide.shared, (wide.target,))
    found = run_survey(method.survey(scope), lambda measure: measure(wide))
    out = np.zeros(2 * 5000, np.uint8)
    method.kernel(
        replace(wide, base=None, models=(), packed=packed), found, Out(out, KINDS["BF16"])
    )
    merged = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
    assert torch.equal(bits_of(merged), bits_of(method.merge(wide, found).bfloat16()))


# NuSLERP.


@pytest.mark.parametrize("t", [0.0, 0.25, 0.6, 1.0])
def test_nuslerp_of_weights_that_sum_to_one_is_slerp(t):
    a, b = draw(4, 6), draw(4, 6, seed=1)
    merged = apply("nuslerp", None, {"a": a, "b": b}, shares(2 * (1 - t), 2 * t))
    assert_close(merged, apply("slerp", a, {"b": b}, t=t))


def test_nuslerp_takes_the_middle_where_weights_cancel():
    models = {"a": at_angle(0), "b": at_angle(60)}
    assert_close(apply("nuslerp", None, models, shares(1.0, -1.0)), at_angle(30))


@pytest.mark.parametrize("flatten", [True, False])
def test_nuslerp_takes_a_vector_of_zeros_for_a_right_angle(flatten):
    models = {"a": torch.zeros(2, 2), "b": torch.ones(2, 2)}
    merged = apply("nuslerp", None, models, shares(0.7, 0.3), flatten=flatten)
    assert_close(merged, torch.full((2, 2), math.sin(0.3 * math.pi / 2)))


@pytest.mark.parametrize("angle", [0.0, 180.0, 179.999])
def test_nuslerp_takes_the_line_between_vectors_that_are_nearly_parallel(angle):
    a, b = at_angle(0), at_angle(angle, 2.0)
    merged = apply("nuslerp", None, {"a": a, "b": b}, shares(0.75, 0.25))
    assert_close(merged, 0.75 * a + 0.25 * b)


def test_nuslerp_of_task_vectors_is_that_of_models_moved_to_the_base():
    base, models = draw(4, 6), {"a": draw(4, 6, seed=1), "b": draw(4, 6, seed=2)}
    moved = {label: model - base for label, model in models.items()}
    each = shares(0.3, 0.9)
    assert_close(apply("nuslerp", base, models, each), base + apply("nuslerp", None, moved, each))


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)])
def test_rows_and_columns_are_vectors_of_their_own(shape, block):
    a, b = draw(*shape), draw(*shape, seed=1)
    for row_wise, axis in ((False, -1), (True, -2)):
        merged = apply(
            "nuslerp", None, {"a": a, "b": b}, flatten=False, row_wise=row_wise, block=block
        )
        alone = [
            apply("nuslerp", None, {"a": x, "b": y})
            for x, y in zip(
                a.movedim(axis, -1).reshape(-1, shape[axis]),
                b.movedim(axis, -1).reshape(-1, shape[axis]),
                strict=True,
            )
        ]
        expected = torch.stack(alone).reshape(a.movedim(axis, -1).shape).movedim(-1, axis)
        assert_close(merged, expected)


@pytest.mark.parametrize("row_wise", [False, True])
def test_a_tensor_of_one_dimension_is_one_vector(row_wise):
    models = {"a": draw(9), "b": draw(9, seed=1)}
    merged = apply("nuslerp", None, models, flatten=False, row_wise=row_wise, block=2)
    assert_close(merged, apply("nuslerp", None, models))


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_copies_of_a_base_that_is_named_are_the_base_bit_for_bit(name):
    base = torch.tensor([[-0.0, 0.1, 3e38], [1e-40, 0.0, -7.0]])
    models = {"a": base.abs().copysign(base), "b": base.clone()}
    models["b"][0, 0] = 0.0
    merged = apply(name, base, models)
    assert torch.equal(merged.view(torch.int32), base.view(torch.int32))


# Multi-SLERP.


def multislerp_as_published(models, weights, eps=1e-8):
    """With the tangent step, in fp64."""
    x, w = torch.stack(list(models.values())).double().flatten(1), torch.tensor(weights).double()
    w = w / w.sum()
    lengths = x.norm(dim=1)
    units = x / (lengths + eps)[:, None]
    mean = w @ units
    mean = mean / mean.norm()
    tangent = w @ (units - (units @ mean)[:, None] * mean)
    step = tangent.norm() + eps
    merged = (w @ lengths) * (mean * step.cos() + tangent * (step.sin() / step))
    return merged.reshape(next(iter(models.values())).shape).float()


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    weights=st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
    eps=st.sampled_from([1e-8, 1e-3, 0.3]),
)
def test_the_tangent_step_of_multislerp_is_nothing(seed, weights, eps):
    models = {label: draw(5, 7, seed=seed + i) for i, label in enumerate("abc")}
    merged = apply("multislerp", None, models, shares(*weights), eps=eps)
    assert_close(merged, multislerp_as_published(models, weights, eps))


def test_multislerp_is_the_mean_direction_at_the_mean_length():
    models = {"a": at_angle(0, 2.0), "b": at_angle(90, 4.0)}
    assert_close(apply("multislerp", None, models), at_angle(45, 3.0))


def test_multislerp_takes_the_line_where_directions_cancel():
    models = {"a": at_angle(0, 3.0), "b": at_angle(120), "c": at_angle(240)}
    expected = (models["a"] + models["b"] + models["c"]) / 3
    assert_close(apply("multislerp", None, models), expected)


@pytest.mark.parametrize("weight", [1.0, 0.5, -2.0])
def test_multislerp_gives_its_only_model_back_whatever_its_weight(weight):
    models = {"a": draw(7)}
    each, shared = shares(weight), {"normalize_weights": False}
    assert torch.equal(apply("multislerp", None, models, each, **shared), models["a"])


def test_multislerp_refuses_weights_that_sum_to_zero():
    models = {"a": draw(3), "b": draw(3, seed=1)}
    with pytest.raises(ValueError, match="sum to zero"):
        apply("multislerp", None, models, shares(1.0, -1.0))
    assert_close(
        apply("multislerp", None, models, shares(2.0, 2.0)),
        apply("multislerp", None, models, shares(1.0, 1.0)),
    )


# Karcher mean.


@pytest.mark.parametrize("angle", [1.0, 90.0, 170.0])
def test_the_karcher_mean_of_two_models_is_the_middle_of_the_arc(angle):
    models = {"a": at_angle(0, 2.0), "b": at_angle(angle, 4.0)}
    assert_close(apply("karcher", None, models), at_angle(angle / 2, 3.0))


def test_steps_from_the_karcher_mean_to_the_models_cancel():
    models = three(40)
    models["c"] = models["a"] + 0.1 * models["c"]
    merged = apply("karcher", None, models, max_iter=100, tol=1e-7).double()
    mean, total = merged / merged.norm(), torch.zeros(40, dtype=torch.float64)
    for model in models.values():
        unit = model.double() / model.double().norm()
        angle = torch.acos(unit @ mean)
        total += angle / angle.sin() * (unit - (unit @ mean) * mean)
    assert total.norm() < 2e-6
    assert_close(merged.norm(), torch.stack([m.double().norm() for m in models.values()]).mean())


def test_fewer_iterations_end_farther_from_the_karcher_mean():
    models = {"a": at_angle(0), "b": at_angle(10), "c": at_angle(160)}
    exact = at_angle((0 + 10 + 160) / 3)
    far, near = ((apply("karcher", None, models, max_iter=n) - exact).norm() for n in (0, 1))
    assert far > 0.1
    assert near < 1e-5
    assert_close(apply("karcher", None, models), exact)


def test_a_model_opposite_to_the_mean_only_counts_for_the_length():
    models = {"a": at_angle(0), "b": at_angle(0), "c": at_angle(180, 4.0)}
    assert_close(apply("karcher", None, models), at_angle(0, 2.0))


def test_models_that_cancel_have_the_first_for_their_mean():
    models = {"a": at_angle(30, 2.0), "b": at_angle(210, 4.0)}
    assert_close(apply("karcher", None, models), at_angle(30, 3.0))


def test_a_model_of_no_length_only_counts_for_the_length():
    models = {"a": at_angle(20), "b": at_angle(80), "c": torch.zeros(2)}
    assert_close(apply("karcher", None, models), at_angle(50, 2 / 3))


def test_models_of_no_length_are_averaged():
    models = {"a": torch.tensor([3e-6, 0.0]), "b": torch.tensor([0.0, 1e-6])}
    expected = torch.tensor([1.5e-6, 5e-7])
    assert_close(apply("karcher", None, models), expected, rtol=1e-6, atol=0)


def test_a_base_takes_no_part_in_the_karcher_mean():
    models = three(4, 6)
    assert torch.equal(apply("karcher", draw(4, 6), models), apply("karcher", None, models))


# Model Stock.


@pytest.mark.parametrize(
    ("angle", "ratio"), [(0.0, 1.0), (60.0, 2 / 3), (90.0, 0.0), (120.0, -2.0), (180.0, 0.0)]
)
def test_model_stock_moves_as_far_as_task_vectors_agree(angle, ratio):
    base, models = torch.tensor([3.0, 4.0]), {"a": at_angle(0), "b": at_angle(angle, 2.0)}
    moved = {label: base + delta for label, delta in models.items()}
    merged = apply("model_stock", base, moved)
    assert_close(merged, base + ratio * (models["a"] + models["b"]) / 2, rtol=1e-5, atol=1e-6)


def test_model_stock_of_several_models_uses_the_mean_cosine():
    base, models = torch.zeros(2), {"a": at_angle(0), "b": at_angle(60), "c": at_angle(90)}
    cosine = (0.5 + 0.0 + math.sqrt(0.75)) / 3
    ratio = 3 * cosine / (1 + 2 * cosine)
    expected = ratio * (models["a"] + models["b"] + models["c"]) / 3
    assert_close(apply("model_stock", base, models), expected)


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 5), (8,)])
def test_filter_wise_every_row_has_its_own_ratio(shape, block):
    base, models = draw(*shape), three(*shape)
    merged = apply("model_stock", base, models, filter_wise=True, block=block)
    rows = [
        apply("model_stock", base.reshape(-1, shape[-1])[i], row)
        for i, row in enumerate(
            dict(zip(models, parts, strict=True))
            for parts in zip(*(m.reshape(-1, shape[-1]) for m in models.values()), strict=True)
        )
    ]
    assert_close(merged, torch.stack(rows).reshape(shape))


@pytest.mark.parametrize("filter_wise", [False, True])
def test_small_task_vectors_agree_less_for_mergekit(filter_wise):
    base, delta = torch.zeros(1, 2), torch.tensor([[4e-4, 3e-4]])  # ‖τ‖² is a quarter of 1e-6
    models, shared = {"a": delta, "b": delta}, {"filter_wise": filter_wise}
    assert_close(apply("model_stock", base, models, **shared), delta)
    theirs = apply("model_stock", base, models, compat="mergekit", **shared)
    assert_close(theirs, 2 * 0.25 / 1.25 * delta)


# Nearswap.


def test_nearswap_moves_by_t_at_most():
    base, a = torch.tensor([1.0, 1, 1, 1, 1]), torch.tensor([1.0, 1.25, 1.5, 3, -3])
    expected = torch.tensor([1.0, 1.25, 1.5, 1.5, 0.5])
    assert torch.equal(apply("nearswap", base, {"a": a}, t=0.5), expected)


@pytest.mark.parametrize(("t", "which"), [(0.0, 0), (100.0, 1)])
def test_nearswap_goes_from_the_base_to_the_model(t, which):
    pair = draw(50), draw(50, seed=1)
    assert torch.equal(apply("nearswap", pair[0], {"a": pair[1]}, t=t), pair[which])


def test_nearswap_is_the_weighted_average_of_its_model_card():
    base, a, t = draw(200), draw(200, seed=1), 0.7
    weight = (t / (base - a).abs()).clamp(0, 1)
    assert_close(apply("nearswap", base, {"a": a}, t=t), weight * a + (1 - weight) * base)


# Arcee Fusion.


def fused_by_sorting(base, model):
    """The method in numpy, with a full sort; importances in fp32."""
    base, model = np.atleast_1d(base.numpy()), np.atleast_1d(model.numpy())

    def padded_softmax(x):
        wide = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
        return wide / wide.sum(-1, keepdims=True) + 1e-8

    p, q = padded_softmax(model), padded_softmax(base)
    divergence = (p * np.log(p / q)).sum(-1, keepdims=True)
    importance = np.abs(model - base) * np.maximum(divergence, 0).astype(np.float32)
    ordered = np.sort(importance.ravel())
    low, middle, high = (float(ordered[q * (ordered.size - 1) // 4]) for q in (1, 2, 3))
    return torch.from_numpy(np.where(importance >= middle + 1.5 * (high - low), model, base))


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("shape", [(64, 48), (7, 1), (3, 20, 11), (500,), (1, 1), (2,)])
def test_arcee_fusion_is_the_sorted_definition(shape, block):
    base = draw(*shape)
    model = base + 0.1 * draw(*shape, seed=1)
    merged = apply("arcee_fusion", base, {"a": model}, block=block)
    assert torch.equal(merged, fused_by_sorting(base, model))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 9999), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_arcee_fusion_is_the_sorted_definition_also_of_ties(seed, rows, columns):
    numbers = torch.Generator().manual_seed(seed)
    base, model = (torch.randint(-2, 3, (rows, columns), generator=numbers) for _ in range(2))
    merged = apply("arcee_fusion", base.float(), {"a": model.float()}, block=10)
    assert torch.equal(merged, fused_by_sorting(base.float(), model.float()))


def test_arcee_fusion_leaves_all_but_the_outliers():
    base = torch.zeros(1, 100)
    model = base + 0.01 * draw(1, 100)
    model[0, 7] = 2.0
    merged = apply("arcee_fusion", base, {"a": model})
    assert merged[0, 7] == 2.0
    assert merged.count_nonzero() < 10
