"""The same merges by mergekit 0.1.5 and by us, tensor by tensor, on tiny fp32 Llamas.

Where we differ on purpose, a test says how and why. Defaults differ too, and are always given
here: ours are the papers' (TIES keeps 20 % of the model, DARE divides by the density and averages
what agrees), mergekit keeps everything, restores L1 norms, and sums.
"""

from __future__ import annotations

import re

import pytest
import torch
from both import assert_alike, assert_exact, by_mergekit, by_us, small_llamas
from checkpoints import llama
from merges import tensors
from safetensors.torch import save_file

IN_LAYER = re.compile(r"\.layers\.")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return small_llamas(tmp_path_factory.mktemp("models"), layers=5, hidden=16, vocab=40)


def in_layers(names):
    return [name for name in names if IN_LAYER.search(name)]


# Linear.


@pytest.mark.parametrize("normalize", [True, False])
def test_linear(models, tmp_path, normalize):
    each = {"a": {"weight": 0.3}, "b": {"weight": -0.5}, "c": {"weight": 1.1}}
    theirs = by_mergekit(models, tmp_path, "linear", each, parameters={"normalize": normalize})
    ours = by_us(models, tmp_path, "linear", each, normalize=normalize)
    # mergekit multiplies and adds with one rounding where the CPU can; we with two, everywhere.
    assert_alike(ours, theirs)


def test_linear_gradients_over_depth(models, tmp_path):
    each = {"a": {"weight": [0.0, 0.2, 1.0]}, "b": {"weight": [1.0, 0.3]}}
    theirs = by_mergekit(models, tmp_path, "linear", each)
    ours = by_us(models, tmp_path, "linear", each)
    assert_alike(ours, theirs, [*in_layers(ours), "model.embed_tokens.weight"])


def test_the_final_norm_and_the_head_take_the_last_value_of_a_gradient_not_the_first(
    models, tmp_path
):
    """mergekit gives them the first, so that `t: [0, ..., 1]` leaves the head of the base under
    layers that are the other model's. To us they come after the last layer, so their depth is 1.
    """
    each = {"a": {"weight": [1.0, 0.0]}, "b": {"weight": [0.0, 1.0]}}
    theirs = by_mergekit(models, tmp_path, "linear", each)
    ours = by_us(models, tmp_path, "linear", each)
    a, b = tensors(models["a"]), tensors(models["b"])
    for name in ("model.norm.weight", "lm_head.weight"):
        assert torch.equal(theirs[name], a[name])
        assert torch.equal(ours[name], b[name])


# SLERP. mergekit adds norms and products up in fp32, we in fp64.


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp(models, tmp_path, t):
    theirs = by_mergekit(
        models, tmp_path, "slerp", {"base": {}, "a": {}}, base_model="base", parameters={"t": t}
    )
    ours = by_us(models, tmp_path, "slerp", {"a": {}}, base="base", t=t)
    assert_alike(ours, theirs, atol=1e-7)


def test_slerp_gradients_and_filters(models, tmp_path):
    attention, mlp = [0, 0.5, 0.3, 0.7, 1], [1, 0.5, 0.7, 0.3, 0]
    t = [
        {"filter": "self_attn", "value": attention},
        {"filter": "mlp", "value": mlp},
        {"value": 0.5},
    ]
    rules = [{"tensors": "*self_attn*", "t": attention}, {"tensors": "*mlp*", "t": mlp}]
    theirs = by_mergekit(
        models, tmp_path, "slerp", {"base": {}, "b": {}}, base_model="base", parameters={"t": t}
    )
    ours = by_us(models, tmp_path, "slerp", {"b": {}}, base="base", t=0.5, where=rules)
    assert_alike(ours, theirs, atol=1e-7)


# Task arithmetic.


@pytest.mark.parametrize(
    ("weights", "shared"),
    [
        ((0.3, 0.5, 0.2), {}),
        ((1.0, -0.5, 0.7), {"lambda": 0.4}),
        ((2.0, 0.5, 0.3), {"normalize": True, "lambda": 1.3}),
        ((0.5, -0.25, -0.25), {"normalize": True}),
    ],
    ids=str,
)
def test_task_arithmetic(models, tmp_path, weights, shared):
    each = {label: {"weight": weight} for label, weight in zip("abc", weights, strict=True)}
    theirs = by_mergekit(
        models, tmp_path, "task_arithmetic", each, base_model="base", parameters=shared
    )
    assert_exact(by_us(models, tmp_path, "task_arithmetic", each, base="base", **shared), theirs)


# TIES. mergekit trims every tensor by itself, and a sum of zero elects +.

LIKE_MERGEKIT = {"scope": "tensor", "elect": "mergekit"}


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([(1.0, 0.5), (1.0, 0.5), (1.0, 0.5)], {}),
        ([(0.5, 0.2), (1.0, 0.8), (0.8, 1.0)], {"lambda": 0.9}),
        ([(0.5, 0.01), (-1.0, 0.3), (0.7, 0.75)], {"normalize": False, "lambda": 1.5}),
        ([(0.4, 0.0), (0.6, 0.0001), (0.1, 0.6)], {"normalize": True}),
    ],
    ids=str,
)
def test_ties(models, tmp_path, rows, shared):
    each = {k: {"weight": w, "density": d} for k, (w, d) in zip("abc", rows, strict=True)}
    theirs = by_mergekit(models, tmp_path, "ties", each, base_model="base", parameters=shared)
    assert_exact(
        by_us(models, tmp_path, "ties", each, base="base", **LIKE_MERGEKIT, **shared), theirs
    )


def test_ties_gradients_and_filters(models, tmp_path):
    weight = [
        {"filter": "self_attn", "value": 0.9},
        {"filter": "mlp", "value": [0.2, 0.8]},
        {"value": 0.4},
    ]
    rules = [
        {"tensors": "*self_attn*", "a": {"weight": 0.9}},
        {"tensors": "*mlp*", "a": {"weight": [0.2, 0.8]}},
    ]
    theirs = by_mergekit(
        models,
        tmp_path,
        "ties",
        {"a": {"weight": weight, "density": 0.6}, "b": {"weight": 1.0, "density": 0.4}},
        base_model="base",
    )
    each = {"a": {"weight": 0.4, "density": 0.6}, "b": {"weight": 1.0, "density": 0.4}}
    assert_exact(
        by_us(models, tmp_path, "ties", each, base="base", where=rules, **LIKE_MERGEKIT), theirs
    )


def test_a_density_is_a_decimal_so_029_of_200_keeps_58_and_not_57(tmp_path):
    """mergekit computes int(0.29 * 200) in binary, which is 57; we keep what the recipe says."""
    folders = {
        k: llama(tmp_path / k, seed=i, layers=1, hidden=200, vocab=8, dtype="F32")
        for i, k in enumerate(("base", "a"))
    }
    each = {"a": {"weight": 1.0, "density": 0.29}}
    theirs = by_mergekit(folders, tmp_path, "ties", each, base_model="base")
    ours = by_us(folders, tmp_path, "ties", each, base="base", **LIKE_MERGEKIT)
    base, norm = tensors(folders["base"]), "model.norm.weight"
    assert [int((x[norm] != base[norm]).sum()) for x in (ours, theirs)] == [58, 57]
    assert all((ours[name] != theirs[name]).sum() <= 1 for name in ours)


def test_by_default_ties_trims_over_the_model_as_its_paper_does(models, tmp_path):
    """mergekit keeps the same share of every tensor; the paper's share is of the whole model, so
    that tensors that hardly changed may lose everything.
    """
    each = {"a": {"weight": 1.0, "density": 0.2}}
    theirs = by_mergekit(models, tmp_path, "ties", each, base_model="base")
    ours, base = by_us(models, tmp_path, "ties", each, base="base"), tensors(models["base"])
    share = [
        {name: (x[name] != base[name]).float().mean().item() for name in base}
        for x in (ours, theirs)
    ]
    assert max(abs(value - 0.2) for value in share[1].values()) < 0.05
    assert max(abs(value - 0.2) for value in share[0].values()) > 0.1
    assert (
        sum((x != base[name]).sum() for name, x in ours.items())
        == sum(x.numel() for x in base.values()) // 5
    )


def test_a_sum_of_zero_elects_nobody_by_default(models, tmp_path):
    """mergekit elects + there, so of two experts that cancel it takes the positive one."""
    mirrored = {"base": models["base"], "a": models["a"], "b": tmp_path / "b"}
    base, a = tensors(models["base"]), tensors(models["a"])
    write_like(models["a"], mirrored["b"], {k: base[k] - (a[k] - base[k]) for k in a})
    each = {label: {"weight": 1.0, "density": 1.0} for label in "ab"}
    name = "lm_head.weight"
    exact = (base[name] - (a[name] - base[name])) - base[name] == -(a[name] - base[name])
    theirs = by_mergekit(mirrored, tmp_path, "ties", each, base_model="base")[name]
    ours = by_us(mirrored, tmp_path, "ties", each, base="base", scope="tensor")[name]
    assert exact.float().mean() > 0.2
    assert torch.equal(ours[exact], base[name][exact])
    assert (theirs[exact] > base[name][exact]).all()


def test_of_equal_magnitudes_the_first_stay(models, tmp_path):
    """mergekit sorts without keeping the order of equal ones, so that which of them stay is left
    to torch. Both keep as many.
    """
    draw, folders = torch.Generator().manual_seed(0), {}
    for label in ("base", "a"):
        values = {
            k: torch.randint(-2, 3, v.shape, generator=draw).float()
            for k, v in tensors(models["a"]).items()
        }
        write_like(models["a"], folders.setdefault(label, tmp_path / label), values)
    each = {"a": {"weight": 1.0, "density": 0.25}}
    theirs = by_mergekit(folders, tmp_path, "ties", each, base_model="base")
    ours = by_us(folders, tmp_path, "ties", each, base="base", **LIKE_MERGEKIT)
    base, name = tensors(folders["base"]), "lm_head.weight"
    delta = (tensors(folders["a"])[name] - base[name]).abs().flatten()
    kept, other = ((x[name] != base[name]).flatten() for x in (ours, theirs))
    assert kept.sum() == other.sum() == delta.numel() // 4
    last = delta[kept].min()
    assert torch.equal(kept & (delta > last), other & (delta > last))
    tied = kept[delta == last]
    assert tied.tolist() == sorted(tied.tolist(), reverse=True)


def write_like(model, folder, values):
    folder.mkdir()
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})


# Passthrough.


def test_passthrough_scales(models, tmp_path):
    scale = [
        {"filter": "o_proj", "value": 0.0},
        {"filter": "down_proj", "value": 0.5},
        {"value": 1.0},
    ]
    rules = [
        {"tensors": "*o_proj*", "a": {"scale": 0.0}},
        {"tensors": "*down_proj*", "a": {"scale": 0.5}},
    ]
    theirs = by_mergekit(models, tmp_path, "passthrough", {"a": {"scale": scale}})
    assert_exact(by_us(models, tmp_path, "passthrough", {"a": {}}, where=rules), theirs)


# What is not arithmetic.


def test_bf16_models_merged_in_fp32_and_rounded_once(tmp_path):
    """With `dtype: float32` mergekit upcasts as we always do. Without, it subtracts and adds in
    bf16, and small updates are lost.
    """
    folders = {
        k: llama(tmp_path / k, seed=i, hidden=16, vocab=40)
        for i, k in enumerate(("base", "a", "b"))
    }
    each = {"a": {"weight": 0.6}, "b": {"weight": 0.3}}
    theirs = by_mergekit(
        folders, tmp_path, "task_arithmetic", each, base_model="base", out_dtype="bfloat16"
    )
    assert_exact(by_us(folders, tmp_path, "task_arithmetic", each, base="base"), theirs)


def test_tied_embeddings_stay_tied(tmp_path):
    folders = {
        k: llama(tmp_path / k, seed=i, hidden=16, vocab=40, dtype="F32", tied=True)
        for i, k in enumerate("ab")
    }
    each = {"a": {"weight": 0.6}, "b": {"weight": 0.4}}
    theirs = by_mergekit(folders, tmp_path, "linear", each)
    ours = by_us(folders, tmp_path, "linear", each)
    assert "lm_head.weight" not in ours
    assert_alike(ours, theirs)
