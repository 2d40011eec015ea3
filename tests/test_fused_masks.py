"""Kernels of masks where a method's parameters, or a tensor's role, say more than its switches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from packing import VALUES, bits_of, pack_tensors
from test_fused import assert_fused, case_of

from mergepipe.kernels.packed import Out
from mergepipe.kernels.tiles import KINDS
from mergepipe.method import Block, Target, load_method

UNBOUNDED = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1.0, -1.0, 0.5])


def with_task(case, label):
    """The same, for the model of one task."""
    return replace(case, each=case.each | {label: case.each[label] | {"task": True}})


def unbounded(name, shared):
    """A case whose tensors hold infinities and NaN."""
    case, draw = case_of(name, shared, "normal", [3000], ["F32"]), torch.Generator().manual_seed(5)
    rows = {x: UNBOUNDED[torch.randint(0, 8, (3000,), generator=draw)] for x in case.tensors["t0"]}
    return replace(case, tensors={"t0": rows})


@pytest.mark.parametrize("compat", ["none", "reference"])
@pytest.mark.parametrize("values", list(VALUES))
def test_the_model_of_a_task_is_the_definitions(values, compat):
    sizes = [2049, 0, 515]
    case = case_of("emr", {"compat": compat}, values, sizes, ["BF16", "F16"], cut=1000, first=1)
    assert_fused(with_task(case, "b"), "BF16")


def test_a_tensor_that_the_task_lacks_stays_the_base_whatever_others_hold():
    case = with_task(case_of("emr", {}, "large", [700, 900], ["F32"]), "c")
    del case.tensors["t1"]["c"]
    case.tensors["t1"]["a"][5] = torch.inf
    assert_fused(case)


@pytest.mark.parametrize("name", ["emr", "localize_and_stitch", "cabs"])
def test_infinities_and_nan_give_the_bits_of_the_definition(name):
    assert_fused(unbounded(name, {}))


@pytest.mark.parametrize(
    ("n", "m"), [(0, 3), (1, 1), (2, 4), (3, 32), (7, 7), (64, 256), (700, 3000), (1, 5000)]
)
@pytest.mark.parametrize("values", ["normal", "whole", "any_bits", "signed_zeros"])
def test_groups_of_any_size_keep_what_the_definition_keeps(values, n, m):
    assert_fused(case_of("cabs", {"n": n, "m": m}, values, [6500], ["BF16"], first=2))


@pytest.mark.parametrize("role", ["embedding", "head"])
def test_a_table_that_is_left_out_stays_the_base(role):
    method, label = load_method("localize_and_stitch"), ("a",)
    base, model = torch.tensor([1.0, -0.0, 3.5]), torch.tensor([2.0, 2.0, 2.0])
    packed = pack_tensors([base, model], based=True)
    target, each = Target("t", (3, 1), role), (method.each(),)
    block = Block(target, 0, None, (), label, each, method.shared(), 0, packed)
    data = np.empty(12, np.uint8)
    method.kernel(block, {}, Out(data, KINDS["F32"]))
    written = torch.from_numpy(data.view(np.float32))
    assert torch.equal(bits_of(written), bits_of(base))
