"""Averages and interpolations beside mergekit's."""

from __future__ import annotations

import pytest
import torch
from both import assert_alike, by_mergekit, by_us, small_llamas
from merges import tensors
from test_mergekit_sce import near
from torch.testing import assert_close

from mergepipe.method import apply

UP_PROJ = "model.layers.0.mlp.up_proj.weight"
# mergekit's norms and angles are fp32, ours fp64.
ROUNDED = {"rtol": 2e-6, "atol": 1e-7}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return small_llamas(tmp_path_factory.mktemp("models"))


def both(models, folder, method, each, *, base=None, theirs=None, **shared):
    """What mergekit makes and what we make; `theirs` are shared parameters by mergekit's names."""
    named = {} if base is None else {"base_model": base}
    parameters = shared if theirs is None else theirs
    reference = by_mergekit(models, folder, method, each, parameters=parameters, **named)
    return by_us(
        models, folder, method, each, **({"base": base} if base else {}), **shared
    ), reference


@pytest.mark.parametrize("base", [None, "base"])
@pytest.mark.parametrize(
    "shared", [{}, {"flatten": False}, {"flatten": False, "row_wise": True}], ids=str
)
def test_nuslerp_is_mergekits(models, tmp_path, base, shared):
    each = {"a": {"weight": 0.3}, "b": {"weight": 1.2}}
    theirs = {f"nuslerp_{name}": value for name, value in shared.items()}
    assert_alike(
        *both(models, tmp_path, "nuslerp", each, base=base, theirs=theirs, **shared), **ROUNDED
    )


@pytest.mark.parametrize("base", [None, "base"])
@pytest.mark.parametrize("shared", [{}, {"normalize_weights": False}, {"eps": 0.1}], ids=str)
def test_multislerp_is_mergekits(models, tmp_path, base, shared):
    each = {"a": {"weight": 0.3}, "b": {"weight": 1.2}, "c": {"weight": -0.2}}
    assert_alike(*both(models, tmp_path, "multislerp", each, base=base, **shared), **ROUNDED)


@pytest.mark.parametrize("shared", [{}, {"max_iter": 1}, {"tol": 0.1}], ids=str)
def test_karcher_is_mergekits(models, tmp_path, shared):
    each = {"a": {}, "b": {}, "c": {}}
    assert_alike(*both(models, tmp_path, "karcher", each, **shared), **ROUNDED)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_is_mergekits(models, tmp_path, filter_wise):
    each = {"a": {}, "b": {}, "c": {}}
    found = both(models, tmp_path, "model_stock", each, base="base", filter_wise=filter_wise)
    assert_alike(*found, **ROUNDED)


def test_nearswap_is_mergekits(models, tmp_path):
    assert_alike(*both(models, tmp_path, "nearswap", {"a": {}}, base="base", t=0.01))


def arcee_fusion(models, folder, dtype):
    each, fields = {"a": {}}, {"base_model": "base", "dtype": dtype, "out_dtype": "float32"}
    theirs = by_mergekit(models, folder, "arcee_fusion", each, **fields)
    return by_us(models, folder, "arcee_fusion", each, base="base"), theirs


def test_arcee_fusion_is_mergekits_in_fp64(models, tmp_path):
    assert_alike(*arcee_fusion(models, tmp_path, "float64"))


def test_mergekits_arcee_fusion_in_fp32_rounds_importances_near_the_threshold(models, tmp_path):
    """A divergence is a sum of terms of either sign that nearly cancel; ours is fp64."""
    ours, theirs = arcee_fusion(models, tmp_path, "float32")
    flipped = sum(int(((ours[k] - theirs[k]).abs() > 1e-6).sum()) for k in ours)
    assert 0 < flipped < 1e-4 * sum(tensor.numel() for tensor in ours.values())


# Where we differ.


def test_mergekit_takes_small_task_vectors_for_less_alike_than_they_are(models, tmp_path):
    """Its product of norms is 1e-6 at least; ours only guards a division by zero."""
    folders, each = near(models, tmp_path), {"a": {}, "b": {}}
    compat, theirs = both(
        folders, tmp_path, "model_stock", each, base="base", theirs={}, compat="mergekit"
    )
    assert_alike(compat, theirs, **ROUNDED)
    elsewhere = tmp_path / "again"
    elsewhere.mkdir()
    ours = by_us(folders, elsewhere, "model_stock", each, base="base")
    base = tensors(models["base"])
    assert (ours[UP_PROJ] - base[UP_PROJ]).norm() > (compat[UP_PROJ] - base[UP_PROJ]).norm()


def one_by_mergekit(name, *tensors, base=None, **parameters):
    from mergekit.merge_methods import merge_tensors

    return merge_tensors(tensors, name, base_index=base, parameters=parameters)


def test_below_a_millionth_mergekits_nearswap_moves_close_parameters_less():
    """It takes |τ| for 1e-6 at least; ours swaps what is nearer than t, however small t is."""
    base, a = torch.zeros(1), torch.tensor([1e-7])
    assert_close(one_by_mergekit("nearswap", base, a, base=0, t=1e-7), 0.1 * a)
    assert torch.equal(apply("nearswap", base, {"a": a}, t=1e-7), a)


def test_mergekits_multislerp_stops_where_directions_cancel_and_ours_takes_the_line():
    a, b, c = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.0]), torch.zeros(2)
    with pytest.raises(ValueError, match="weighted sum of the input tensors is zero"):
        one_by_mergekit("multislerp", a, b, c, weight=1.0)
    assert_close(apply("multislerp", None, {"a": a, "b": b, "c": c}), torch.tensor([1 / 3, 0.0]))


def test_models_that_are_all_short_are_zeros_in_mergekits_karcher_and_their_average_in_ours():
    a, b = torch.tensor([3e-6, 0.0]), torch.tensor([0.0, 1e-6])
    assert torch.equal(one_by_mergekit("karcher", a, b), torch.zeros(2))
    assert_close(apply("karcher", None, {"a": a, "b": b}), (a + b) / 2, rtol=1e-6, atol=0)


def test_columns_of_a_stack_run_across_it_in_mergekit_and_within_each_matrix_in_ours():
    from mergekit.merge_methods.nuslerp import nuslerp

    a, b = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    ours = apply("nuslerp", None, {"a": a, "b": b}, flatten=False, row_wise=True)
    assert not torch.allclose(ours, nuslerp(0.5, a, b, dim=0))
    for matrix, x, y in zip(ours, a, b, strict=True):
        assert_close(matrix, nuslerp(0.5, x, y, dim=0))
