"""Laws that every post-step keeps, over all of them and all their switches."""

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

from mergepipe.method import apply, load_post_step, post_step_names

SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 3, 4)]
METHODS = ["task_arithmetic", "ties", "dare_linear", "sce", "slerp"]


def switches(name):
    """Every combination of a post-step's bool and word parameters."""
    fields = load_post_step(name).shared.model_fields
    choices = {
        field: (True, False) if found.annotation is bool else get_args(found.annotation)
        for field, found in fields.items()
        if found.annotation is bool or get_origin(found.annotation) is Literal
    }
    return [dict(zip(choices, row, strict=True)) for row in itertools.product(*choices.values())]


VARIANTS = [(name, values) for name in post_step_names() for values in switches(name)]
every_post_step = pytest.mark.parametrize("name", post_step_names())
every_variant = pytest.mark.parametrize(("name", "values"), VARIANTS, ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(shape=(4, 6), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def experts(shape=(4, 6), count=3):
    return {label: draw(shape, seed) for seed, label in enumerate("abc"[:count], 1)}


def after(name, values, base, models, method="task_arithmetic", **options):
    return apply(method, base, models, then=[(name, values)], **options)


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype == torch.float32
    assert actual.shape == expected.shape
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))


def test_there_are_post_steps():
    assert "lines" in post_step_names()
    assert len(VARIANTS) >= len(post_step_names())


@every_shape
@every_variant
def test_copies_of_the_base_stay_exactly_the_base(name, values, shape):
    base = draw(shape)
    base = base.where(base > -0.5, -0.0)
    models = {label: base.clone() for label in "abc"}
    assert_same_bits(after(name, values, base, models), base)


@every_shape
@every_variant
def test_any_shape_comes_back_in_fp32_and_finite(name, values, shape):
    merged = after(name, values, draw(shape), experts(shape))
    assert (merged.shape, merged.dtype) == (shape, torch.float32)
    assert merged.isfinite().all()


@every_variant
def test_inputs_are_not_modified(name, values):
    base, models = draw(), experts()
    after(name, values, base, models)
    assert base.equal(draw())
    assert all(models[label].equal(one) for label, one in experts().items())


@pytest.mark.parametrize("block", [1, 7, 24])
@every_variant
def test_the_size_of_blocks_does_not_matter(name, values, block):
    merge = partial(after, name, values, draw(), experts())
    assert_close(merge(block=block), merge(), rtol=1e-6, atol=1e-6)


@every_variant
def test_the_same_call_gives_the_same_bits(name, values):
    merge = partial(after, name, values, draw(), experts(), seed=3)
    assert_same_bits(merge(), merge())


@pytest.mark.parametrize("method", METHODS)
@every_variant
def test_it_follows_any_method_that_has_a_base(name, values, method):
    models = experts(count=1 if method == "slerp" else 3)
    merged = after(name, values, draw(), models, method)
    assert merged.shape == draw().shape
    assert merged.isfinite().all()


@every_variant
def test_it_may_come_twice(name, values):
    base, models = draw(), experts()
    steps = [(name, values), (name, values)]
    merged = apply("task_arithmetic", base, models, then=steps)
    assert merged.isfinite().all()


@every_variant
def test_it_takes_no_part_in_what_a_model_is_called(name, values):
    renamed = dict(zip("xyz", experts().values(), strict=True))
    assert_same_bits(after(name, values, draw(), renamed), after(name, values, draw(), experts()))


# What every post-step says about itself.


@every_post_step
def test_the_worked_example_of_every_post_step_is_true(name):
    found = doctest.testmod(importlib.import_module(f"mergepipe.post_steps.{name}"))
    assert (found.attempted > 0, found.failed) == (True, 0)


@every_post_step
def test_every_post_step_gives_a_formula_and_a_source(name):
    step = load_post_step(name)
    assert re.search(r"^    .*=", step.doc, re.MULTILINE), "an indented formula"
    assert re.search(r", .*(19|20)\d\d[.;]", step.doc), "authors, venue and year"
    assert step.summary.endswith(".")


@every_post_step
def test_every_parameter_is_described_and_none_is_per_model(name):
    step = load_post_step(name)
    assert not step.each.model_fields
    assert [k for k, found in step.shared.model_fields.items() if not found.description] == []
