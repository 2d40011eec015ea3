"""Laws that every merge method keeps.

They run over all registered methods and all their switches, so a new file in `methods/` is
tested without an edit here.
"""

from __future__ import annotations

import doctest
import importlib
import itertools
import re
from functools import partial
from typing import Literal, get_args, get_origin

import pytest
import torch
from torch.testing import assert_close

from mergepipe.errors import InputError
from mergepipe.method import Block, Scope, Target, apply, load_method, method_names, run_survey

SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 3, 4)]
# Copies give the base only up to rounding: Σ x / N, and sums of products.
ROUNDS_COPIES = {"cart", "karcher", "linear", "multislerp", "nuslerp", "slerp"}
# Methods in which the order of the models means something.
ORDERED = {"slerp", "cabs"}
# Methods that sum fp64 numbers block by block, so that the size of blocks changes the rounding.
SUMS_IN_BLOCKS = {"karcher", "model_stock", "multislerp", "nuslerp", "slerp", "varm"}
# Methods that do not give their only expert back, whatever their parameters.
CHANGES_ITS_EXPERT = {"arcee_fusion", "iso_c", "iso_cts", "nearswap", "pcb", "resmerge"}
# What makes each method give its only expert back.
FULL = {"weight": 1.0, "density": 1.0, "scale": 1.0, "t": 1.0, "lambda_": 1.0, "n": 256}


def switches(name):
    """Every combination of a method's bool and word parameters."""
    fields = load_method(name).shared.model_fields
    choices = {
        field: (True, False) if found.annotation is bool else get_args(found.annotation)
        for field, found in fields.items()
        if found.annotation is bool or get_origin(found.annotation) is Literal
    }
    return [dict(zip(choices, row, strict=True)) for row in itertools.product(*choices.values())]


def shown(value):
    if isinstance(value, dict):
        return ",".join(f"{key}={word}".lower() for key, word in value.items()) or "plain"
    return str(value)


VARIANTS = [(name, shared) for name in method_names() for shared in switches(name)]
every_method = pytest.mark.parametrize("name", method_names())
every_variant = pytest.mark.parametrize(("name", "shared"), VARIANTS, ids=shown)
delta_methods = pytest.mark.parametrize(
    "name", [n for n in method_names() if load_method(n).needs_base and n not in ROUNDS_COPIES]
)
dare = pytest.mark.parametrize("name", [n for n in method_names() if n.startswith("dare")])
scaled = pytest.mark.parametrize(
    "name",
    [
        n
        for n in method_names()
        if "lambda_" in load_method(n).shared.model_fields
        and n not in CHANGES_ITS_EXPERT
        and load_method(n).models[0] == 1
    ],
)
normalizing = pytest.mark.parametrize(
    "name", [n for n in method_names() if "normalize" in load_method(n).shared.model_fields]
)


def draw(shape=(4, 6), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def experts(name, shape=(4, 6)):
    """As many models as the method takes, three at most."""
    count = load_method(name).models[1] or 3
    return {label: draw(shape, seed) for seed, label in enumerate("abc"[:count], 1)}


def base_for(name, shape=(4, 6)):
    return draw(shape) if load_method(name).needs_base else None


def each_of(name, models, **values):
    """The per-model parameters among `values`: {label: {field: value}}, lists are dealt out."""
    fields = load_method(name).each.model_fields
    return {
        label: {k: v[i] if isinstance(v, list) else v for k, v in values.items() if k in fields}
        for i, label in enumerate(models)
    }


def shared_of(name, **values):
    return {k: v for k, v in values.items() if k in load_method(name).shared.model_fields}


def sums_in_blocks(name, shared):
    """Whether a method adds fp64 numbers up block by block, so that blocks change the rounding."""
    return name in SUMS_IN_BLOCKS or shared.get("rescale") == "l1"


def block_of(name, models, shared):
    method, base = load_method(name), base_for(name)
    flat = tuple(model.flatten() for model in models.values())
    each = tuple(method.each() for _ in models)
    origin = None if base is None else base.flatten()
    return Block(
        Target("tensor", (4, 6)), 0, origin, flat, tuple(models), each, method.shared(**shared)
    )


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype == torch.float32
    assert actual.shape == expected.shape
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))


# Laws of every method.


def test_there_are_methods_and_their_switches_are_found():
    assert len(method_names()) >= 7
    assert len(VARIANTS) >= 50


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_variant
def test_merging_copies_of_the_base_gives_the_base(name, shared, shape):
    base = draw(shape)
    models = {label: base.clone() for label in experts(name)}
    merged = apply(name, base, models, **shared)
    if name in ROUNDS_COPIES and shared.get("normalize", True):
        assert_close(merged, base)
    elif load_method(name).needs_base:
        assert_same_bits(merged, base)


@delta_methods
def test_merging_copies_of_the_base_keeps_the_sign_of_zero(name):
    base = torch.tensor([-0.0, 0.0, -0.0])
    models = {label: torch.zeros(3) for label in experts(name)}
    assert_same_bits(apply(name, base, models), base)


@every_variant
def test_inputs_are_not_modified(name, shared):
    base, models = base_for(name), experts(name)
    before = {label: model.clone() for label, model in models.items()}
    apply(name, base, models, **shared)
    assert all(torch.equal(models[label], before[label]) for label in models)
    assert base is None or torch.equal(base, draw())


@every_variant
def test_the_same_seed_gives_the_same_result(name, shared):
    merge = partial(apply, name, base_for(name), experts(name), seed=3, **shared)
    assert_same_bits(merge(), merge())


@pytest.mark.parametrize("block", [1, 7, 24])
@every_variant
def test_the_size_of_blocks_does_not_matter(name, shared, block):
    merge = partial(apply, name, base_for(name), experts(name), **shared)
    if sums_in_blocks(name, shared):
        assert_close(merge(block=block), merge())
    else:
        assert_same_bits(merge(block=block), merge())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_variant
def test_any_shape_comes_back_in_fp32_and_finite(name, shared, shape):
    merged = apply(name, base_for(name, shape), experts(name, shape), **shared)
    assert merged.shape == shape
    assert merged.dtype == torch.float32
    assert torch.isfinite(merged).all()


@every_variant
def test_one_expert_with_full_weight_is_given_back(name, shared):
    if load_method(name).models[0] > 1 or name in CHANGES_ITS_EXPERT:
        return
    models = {"a": draw(seed=1)}
    full = shared_of(name, **FULL)
    merged = apply(name, base_for(name), models, each_of(name, models, **FULL), **full, **shared)
    assert_close(merged, models["a"])


@every_variant
def test_the_order_of_experts_does_not_matter(name, shared):
    if name in ORDERED:
        return
    base, models = base_for(name), experts(name)
    each = each_of(name, models, weight=[0.5, 1.0, 0.25], density=[0.5, 0.8, 0.3])
    backwards = {label: models[label] for label in reversed(models)}
    assert_close(
        apply(name, base, backwards, each, **shared), apply(name, base, models, each, **shared)
    )


@normalizing
def test_with_normalize_only_ratios_of_weights_matter(name):
    base, models = base_for(name), experts(name)
    one, three = (each_of(name, models, weight=[0.2 * s, 0.5 * s, 0.4 * s]) for s in (1, 3))
    assert_close(
        apply(name, base, models, one, normalize=True),
        apply(name, base, models, three, normalize=True),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_variant
def test_narrow_inputs_are_upcast_before_anything_else(name, shared, dtype):
    base, models = base_for(name), experts(name)
    narrow = {label: model.to(dtype) for label, model in models.items()}
    wide = {label: model.float() for label, model in narrow.items()}
    low = None if base is None else base.to(dtype)
    high = None if low is None else low.float()
    assert_same_bits(apply(name, low, narrow, **shared), apply(name, high, wide, **shared))


@scaled
def test_a_bf16_task_vector_keeps_its_small_digits(name):
    # In bf16, 1 - 2⁻⁹ is 1, and half of it would give 0.501953125.
    base, expert = (torch.tensor([x], dtype=torch.bfloat16) for x in (2**-9, 1.0))
    each = each_of(name, "a", density=1.0)
    merged = apply(name, base, {"a": expert}, each, lambda_=0.5)
    assert merged.tolist() == [0.5009765625]


@every_method
def test_a_call_that_makes_no_sense_is_refused(name):
    base, models = base_for(name), experts(name)
    with pytest.raises(InputError, match="unknown model 'z'"):
        apply(name, base, models, {"z": {}})
    with pytest.raises(InputError, match="models beside the base, got 0"):
        apply(name, base, {})
    if load_method(name).needs_base:
        with pytest.raises(InputError, match="needs a base"):
            apply(name, None, models)
        with pytest.raises(InputError, match="different shapes"):
            apply(name, base[:1], models)


# What every method says about itself.


@every_method
def test_the_worked_example_of_every_method_is_true(name):
    found = doctest.testmod(importlib.import_module(f"mergepipe.methods.{name}"))
    assert found.attempted > 0
    assert found.failed == 0


@every_method
def test_every_method_gives_a_formula_and_a_source(name):
    doc = load_method(name).doc
    assert re.search(r"^    .*=", doc, re.MULTILINE), "an indented formula"
    assert load_method(name).summary.endswith(".")
    if name != "passthrough":  # a copy has no author
        assert re.search(r", .*(19|20)\d\d[.;]", doc), "authors, venue and year"


@every_method
def test_every_parameter_is_described(name):
    method = load_method(name)
    fields = {**method.each.model_fields, **method.shared.model_fields}
    assert [field for field, found in fields.items() if not found.description] == []


@every_variant
def test_a_survey_sweeps_no_more_often_than_the_method_says(name, shared):
    method, models = load_method(name), experts(name)
    block = block_of(name, models, shared)
    scope = Scope(
        dict.fromkeys(models, 24),
        dict(zip(models, block.each, strict=True)),
        block.shared,
        (block.target,),
    )
    swept = []
    if method.survey is not None:
        run_survey(method.survey(scope), lambda measure: swept.append(measure) or measure(block))
    assert len(swept) <= method.sweeps(block.shared)


def test_the_worked_example_of_apply_is_true():
    found = doctest.testmod(importlib.import_module("mergepipe.method.applying"))
    assert (found.attempted > 0, found.failed) == (True, 0)
