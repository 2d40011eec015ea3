"""MagMax, VaRM, RAM, RAM+, update-selective merging and Consensus: numbers, and what they rest on."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import pack_tensors
from pydantic import ValidationError
from torch.testing import assert_close

from mergepipe.method import (
    Block,
    Scope,
    Target,
    add_statistics,
    apply,
    block_ranges,
    load_method,
    run_survey,
)
from mergepipe.methods.varm import unit_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "methods.json").read_text())


def zeros_and(**models):
    """A base of zeros and models, as `apply` takes them."""
    made = {label: torch.tensor(values) for label, values in models.items()}
    return torch.zeros_like(next(iter(made.values()))), made


def merge_model(name, base, models, each=None, *, block=7, **shared):
    """Merge {tensor name: values} in blocks, surveyed together; models may lack tensors."""
    method = load_method(name)
    common, per = (
        method.shared(**shared),
        {k: method.each(**(each or {}).get(k, {})) for k in models},
    )
    blocks = []
    for tensor, values in base.items():
        target, having = (
            Target(tensor, tuple(values.shape)),
            [k for k in models if tensor in models[k]],
        )
        for start, stop in block_ranges(target, block=block):
            run = tuple(models[k][tensor][start:stop] for k in having)
            part = (target, start, values[start:stop], run, tuple(having))
            blocks.append(Block(*part, tuple(per[k] for k in having), common))
    sizes = {k: sum(map(len, models[k].values())) for k in models}
    scope = Scope(sizes, per, common, tuple(Target(k, tuple(v.shape)) for k, v in base.items()))
    found = run_survey(method.survey(scope), lambda m: add_statistics(map(m, blocks)))
    merged = {tensor: [] for tensor in base}
    for one in blocks:
        merged[one.tensor].append(method.merge(one, found))
    return {tensor: torch.cat(parts) for tensor, parts in merged.items()}


# MagMax.


def test_magmax_takes_the_largest_update_with_its_sign():
    base, models = zeros_and(a=[1.0, -5, 2], b=[-3.0, 4, 0], c=[2.0, 1, -2.5])
    assert apply("magmax", base, models, lambda_=1.0).tolist() == [-3, -5, -2.5]
    assert apply("magmax", base, models).tolist() == [-1.5, -2.5, -1.25]


def test_of_equal_magnitudes_magmax_takes_the_last_models():
    base, models = zeros_and(a=[1.0, 2], b=[-1.0, 1], c=[0.5, -2])
    assert apply("magmax", base, models, lambda_=1.0).tolist() == [-1, -2]


def test_magmax_compares_updates_and_not_parameters():
    base, models = torch.tensor([10.0]), {"a": torch.tensor([11.0]), "b": torch.tensor([7.0])}
    assert apply("magmax", base, models, lambda_=1.0).tolist() == [7]


# VaRM.


def test_varm_weighs_by_mean_squares():
    base, models = zeros_and(a=[3.0, 1, 0, 0], b=[0.0, 0, -1, 2])
    expected = (10 * models["a"] + 5 * models["b"]) / 15
    assert_close(apply("varm", base, models), expected)


def test_varm_is_a_weighted_average_of_parameters():
    draw = torch.Generator().manual_seed(0)
    base, a, b = (torch.randn(50, generator=draw, dtype=torch.float64) for _ in range(3))
    one, other = ((x - base).square().sum() for x in (a, b))
    expected = (one * a + other * b) / (one + other)
    assert_close(apply("varm", base, {"a": a, "b": b}), expected.float())


def test_a_model_that_did_not_move_has_no_weight():
    base, models = zeros_and(a=[3.0, -1], b=[0.0, 0])
    assert_close(apply("varm", base, models), models["a"])


@pytest.mark.parametrize(
    ("tensor", "layer", "module"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "model.layers.3", "model.layers.3.self_attn"),
        ("model.layers.3.mlp.experts.7.w1.weight", "model.layers.3", "model.layers.3.mlp"),
        (
            "model.layers.12.input_layernorm.weight",
            "model.layers.12",
            "model.layers.12.input_layernorm",
        ),
        ("transformer.h.0.attn.c_attn.bias", "transformer.h.0", "transformer.h.0.attn"),
        ("lm_head.weight", "lm_head.weight", "lm_head.weight"),
        ("weight", "weight", "weight"),
    ],
)
def test_a_unit_is_named_by_the_first_parts_of_the_tensors_name(tensor, layer, module):
    found = [unit_of(tensor, unit) for unit in ("matrix", "module", "layer", "model")]
    assert found == [tensor, module, layer, ""]


LAYER, MODULE = "layers.0.", "layers.0.attn."
NAMES = [f"{MODULE}q", f"{MODULE}k", f"{LAYER}mlp.up", "layers.1.attn.q", "head"]
UNITS = {
    "matrix": [[0], [1], [2], [3], [4]],
    "module": [[0, 1], [2], [3], [4]],
    "layer": [[0, 1, 2], [3], [4]],
    "model": [[0, 1, 2, 3, 4]],
}


def drawn(sizes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(size, generator=draw) for name, size in zip(NAMES, sizes, strict=True)
    }


@pytest.mark.parametrize("unit", UNITS)
def test_varm_sums_means_of_tensors_over_its_unit(unit):
    sizes = [20, 5, 30, 1, 9]
    base, models = drawn(sizes), {label: drawn(sizes, seed) for seed, label in enumerate("ab", 1)}
    merged = merge_model("varm", base, models, unit=unit)
    for group in UNITS[unit]:
        names = [NAMES[at] for at in group]
        a, b = (
            sum((models[k][name] - base[name]).double().square().mean() for name in names)
            for k in "ab"
        )
        for name in names:
            expected = (a * models["a"][name] + b * models["b"][name]) / (a + b)
            assert_close(merged[name], expected.float())


def test_the_weights_of_a_tensor_are_of_those_that_have_it():
    base = {"layers.0.q": torch.zeros(2), "layers.0.k": torch.zeros(2)}
    a = {"layers.0.q": torch.tensor([2.0, 0]), "layers.0.k": torch.tensor([0.0, 4])}
    b = {"layers.0.q": torch.tensor([0.0, 2])}
    merged = merge_model("varm", base, {"a": a, "b": b}, unit="layer")
    assert_close(merged["layers.0.k"], a["layers.0.k"])
    assert_close(merged["layers.0.q"], torch.tensor([2 * 10 / 12, 2 * 2 / 12]))


# RAM and RAM+.


def test_ram_averages_what_several_changed_and_keeps_what_one_did():
    base, models = zeros_and(a=[6.0, 6, 0, 1], b=[3.0, 0, 0, 2], c=[0.0, 0, 0, 6])
    assert apply("ram", base, models).tolist() == [4.5, 6, 0, 3]


def test_ram_takes_no_notice_of_changes_of_at_most_epsilon():
    base, models = zeros_and(a=[0.5, 0.5, 0.75], b=[2.0, 0.0, 0.25])
    assert apply("ram", base, models, epsilon=0.5).tolist() == [2, 0, 0.75]
    tenth = {"a": torch.tensor([0.1]), "b": torch.tensor([0.1000001])}
    assert apply("ram", base[:1], tenth, epsilon=0.1) == tenth["b"]


def test_every_step_of_bf16_counts_for_ram():
    base = torch.tensor([0.02, -0.5, 1.0], dtype=torch.bfloat16)
    steps = base.view(torch.int16) + 1
    expert = steps.view(torch.bfloat16)
    assert torch.equal(apply("ram", base, {"a": expert, "b": base}), expert.float())


plus = partial(apply, "ram_plus")


def test_ram_plus_enlarges_by_shared_over_unique():
    base, models = zeros_and(a=[2.0, 4, 6, 8, 0], b=[4.0, 0, 0, 0, 1])
    # a: 1 shared, 3 unique; b: 1 and 1.
    expected = torch.tensor([3.0, *(x * (1 + 0.6 / 3) for x in (4, 6, 8)), 1.6])
    assert_close(plus(base, models, r=0.6, alpha=9.0), expected)
    assert_close(plus(base, models, r=0.6, alpha=0.5)[4], torch.tensor(1.3))


@pytest.mark.parametrize("fields", [{"r": 0.0}, {"alpha": 0.0}], ids=str)
def test_ram_plus_without_rescaling_is_ram(fields):
    base, models = zeros_and(a=[2.0, 4, 0, 8, 0], b=[4.0, 0, 0, 0, 1])
    assert torch.equal(plus(base, models, **fields), apply("ram", base, models))


def test_ram_plus_of_a_model_without_unique_updates_is_ram():
    base, models = zeros_and(a=[2.0, 0], b=[4.0, 0])
    assert plus(base, models).tolist() == [3, 0]


def test_ram_plus_counts_over_the_model_unless_told_otherwise():
    base = {"p": torch.zeros(2), "q": torch.zeros(2)}
    a = {"p": torch.tensor([2.0, 4]), "q": torch.tensor([8.0, 8])}
    b = {"p": torch.tensor([4.0, 0]), "q": torch.tensor([0.0, 0])}
    merged = merge_model("ram_plus", base, {"a": a, "b": b}, r=0.3)
    assert_close(merged["p"], torch.tensor([3.0, 4 * 1.1]))  # 1 shared, 3 unique
    assert_close(merged["q"], torch.tensor([8.8, 8.8]))
    assert_close(plus(base["p"], {"a": a["p"], "b": b["p"]}, r=0.3), torch.tensor([3.0, 5.2]))


# Update-selective merging.


def test_update_selective_merging_adds_seven_tenths_of_the_largest_quarter():
    base, expert = torch.tensor(GOLDEN["base"]), torch.tensor(GOLDEN["experts"][0])
    expected = torch.tensor(GOLDEN["cases"]["dler_update_selective"]["out"])
    merged = apply("update_selective", base, {"e1": expert})
    assert_close(merged, expected, rtol=1e-6, atol=2e-7)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 30), min_size=5, max_size=5),
    density=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    block=st.integers(1, 40),
)
def test_update_selective_merging_trims_the_model_as_one_vector(seed, sizes, density, block):
    draws = np.random.default_rng(seed)
    model = {
        n: torch.from_numpy(draws.integers(-3, 4, s)).float()
        for n, s in zip(NAMES, sizes, strict=True)
    }
    base = {name: torch.zeros_like(values) for name, values in model.items()}
    each = {"a": {"density": density, "scale": 0.5}}
    merged = merge_model("update_selective", base, {"a": model}, each, block=block)
    flat = torch.cat([model[name] for name in sorted(NAMES)])
    count = max(1, int(density * len(flat))) if density else 0
    kept = torch.zeros_like(flat)
    chosen = flat.abs().argsort(descending=True, stable=True)[:count]
    kept[chosen] = flat[chosen]
    assert torch.equal(torch.cat([merged[name] for name in sorted(NAMES)]), 0.5 * kept)


def test_within_a_tensor_update_selective_merging_keeps_its_own_share():
    base, models = zeros_and(a=[1.0, 2, -4, 3])
    each = {"a": {"density": 0.5, "scale": 1.0}}
    kept = apply("update_selective", base, models, each, scope="tensor")
    assert kept.tolist() == [0, 0, -4, 3]


# Consensus.


def consensus(k, *columns, mask_lambda=0.5, **shared):
    """Merge task vectors of one number each."""
    base, models = zeros_and(**dict(zip("abcd", ([x] for x in columns), strict=False)))
    each = {label: {"mask_lambda": mask_lambda} for label in models}
    return apply("consensus_ta", base, models, each, k=k, **shared).item()


def test_consensus_keeps_the_sum_where_k_masks_hold():
    # 4 and 3 are more than 0.4 times what the others add up to, 5 and 6; 2 beside 7 is not.
    assert [consensus(k, 4.0, 3.0, 2.0, mask_lambda=0.4) for k in (1, 2, 3)] == [9, 9, 0]


def test_the_mask_is_strict():
    assert consensus(2, 4.0, 2.0, mask_lambda=0.5) == 0
    assert consensus(2, 4.0, 2.0, mask_lambda=0.49) == 6


def test_each_model_has_a_threshold_of_its_own():
    base, models = zeros_and(a=[4.0], b=[2.0])
    merged = partial(apply, "consensus_ta", base, models)
    assert merged({"b": {"mask_lambda": 0.4}}).item() == 6
    assert merged({"b": {"mask_lambda": 0.6}}).item() == 0


def test_what_cancels_is_in_every_mask_of_those_that_changed_it():
    assert consensus(3, 2.0, -2.0, 1.0) == 1
    assert consensus(2, 1.0, 0.0, 0.0) == 0


def test_a_union_of_masks_at_zero_is_task_arithmetic():
    draw = torch.Generator().manual_seed(0)
    base, *rest = (torch.randn(99, generator=draw) for _ in range(4))
    models = dict(zip("abc", rest, strict=True))
    each = {label: {"mask_lambda": 0.0} for label in models}
    merged = apply("consensus_ta", base, models, each, k=1, lambda_=0.3)
    assert torch.equal(merged, apply("task_arithmetic", base, models, lambda_=0.3))


def test_more_masks_than_models_are_refused():
    base, models = zeros_and(a=[1.0], b=[2.0])
    with pytest.raises(ValueError, match="k is 3, but there are 2 models"):
        apply("consensus_ta", base, models, k=3)


@pytest.mark.parametrize(
    ("name", "each", "shared"),
    [
        ("ram", {}, {"epsilon": -1e-9}),
        ("ram_plus", {}, {"r": -0.1}),
        ("ram_plus", {}, {"alpha": -0.1}),
        ("ram_plus", {}, {"scope": "layer"}),
        ("varm", {}, {"unit": "parameter"}),
        ("update_selective", {"density": 1.1}, {}),
        ("consensus_ta", {"mask_lambda": -0.1}, {}),
        ("consensus_ta", {}, {"k": 0}),
    ],
)
def test_parameters_out_of_range_are_refused(name, each, shared):
    method = load_method(name)
    with pytest.raises(ValidationError):
        (method.each(**each), method.shared(**shared))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5000))
def test_ram_plus_counts_in_packed_blocks_what_it_counts_in_torch(seed, count):
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randn(count, generator=draw).bfloat16() for _ in range(4)]
    for row in rows[1:]:
        kept = torch.rand(count, generator=draw) < 0.5
        row[kept] = rows[0][kept]
    method = load_method("ram_plus")
    labels, shared = ("a", "b", "c"), method.shared(epsilon=0.5)
    block = Block(
        Target("t", (count,)),
        0,
        rows[0].float(),
        tuple(row.float() for row in rows[1:]),
        labels,
        tuple(method.each() for _ in labels),
        shared,
    )
    scope = Scope(dict.fromkeys(labels, count), {}, shared, (block.target,))
    measure = next(method.survey(scope))
    packed = replace(block, base=None, models=(), packed=pack_tensors(rows, based=True, first=0))
    plain, fused = measure(block), measure(packed)
    assert plain.keys() == fused.keys()
    assert all(np.array_equal(plain[key], fused[key]) for key in plain)
