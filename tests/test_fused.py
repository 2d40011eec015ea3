"""A method's kernel is its definition in torch, bit for bit, whatever the tensors hold.

They run over all methods and switches that have a kernel, so a new one is tested without an edit.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packing import DTYPES, VALUES, bits_of, pack_tensors
from test_methods import VARIANTS, each_of, shared_of, shown

from mergepipe.kernels.packed import Out
from mergepipe.kernels.tiles import KINDS
from mergepipe.method import (
    BLOCK,
    Block,
    Scope,
    Target,
    add_statistics,
    block_ranges,
    load_method,
    measure_blocks,
    run_survey,
)

PARAMETERS = {
    "weight": [0.7, -0.3, 1.1],
    "density": [0.5, 0.3, 0.8],
    "gamma": [0.1, 0.05, 0.25],
    "scale": [0.6, 1.0, 1.0],
}
SIZES = [0, 1, 2047, 2048, 2049]


def has_kernel(name, shared):
    method = load_method(name)
    return method.kernel_for(method.shared(**shared)) is not None


FUSED = [(name, shared) for name, shared in VARIANTS if has_kernel(name, shared)]
every_kernel = pytest.mark.parametrize(("name", "shared"), FUSED, ids=shown)
every_fused_method = pytest.mark.parametrize("name", sorted({name for name, _ in FUSED}))


@dataclass(frozen=True)
class Case:
    """A method, its parameters, and the tensors of one scope: {name: {label: values}}.

    The base's label is "base". Not every tensor has every model.
    """

    name: str
    shared: dict
    tensors: dict
    each: dict
    columns: int = 1
    cut: int = BLOCK  # elements of a block
    first: int = 0  # where the run begins in packed rows
    seed: int = 3

    def blocks(self, *, packed):
        return [block for name in self.tensors for block in self._blocks(name, packed=packed)]

    def _blocks(self, name, *, packed):
        method, rows = load_method(self.name), self.tensors[name]
        shared, labels = method.shared(**self.shared), tuple(x for x in rows if x != "base")
        each = tuple(method.each(**self.each[label]) for label in labels)
        count = rows[labels[0]].numel()
        target = Target(name, (count // self.columns, self.columns))
        for start, stop in block_ranges(target, method.cut(shared, target), self.cut):
            held = {
                label: values[start:stop]
                for label, values in rows.items()
                if label != "base" or method.needs_base
            }
            wide = {} if packed else {label: values.float() for label, values in held.items()}
            ordered = [held[x] for x in ("base", *labels) if x in held]
            yield Block(
                target,
                start,
                wide.pop("base", None),
                tuple(wide[label] for label in labels if wide),
                labels,
                each,
                shared,
                self.seed,
                pack_tensors(ordered, based=method.needs_base, first=self.first)
                if packed
                else None,
            )

    def survey(self, blocks):
        method, sizes = load_method(self.name), {}
        if method.survey is None:
            return None
        for rows in self.tensors.values():
            for label in rows.keys() - {"base"}:
                sizes[label] = sizes.get(label, 0) + rows[label].numel()
        each = {label: method.each(**self.each[label]) for label in sizes}
        survey = method.survey(Scope(sizes, each, method.shared(**self.shared)))
        return run_survey(survey, lambda m: add_statistics(measure_blocks(m, blocks)))


def assert_fused(case, out="F32"):
    """The kernel's survey finds what the definition's does, and given that, so does the kernel."""
    packed, plain = case.blocks(packed=True), case.blocks(packed=False)
    found = case.survey(packed)
    assert_found(found, case.survey(plain))
    method = load_method(case.name)
    for fused, block in zip(packed, plain, strict=True):
        data = np.full(fused.packed.count * DTYPES[out].itemsize, 0xAB, np.uint8)
        method.kernel(fused, found, Out(data, KINDS[out]))
        words = data.view(np.int32 if out == "F32" else np.int16)
        actual = torch.from_numpy(words).view(DTYPES[out])
        expected = method.merge(block, found).to(DTYPES[out])
        assert torch.equal(bits_of(actual), bits_of(expected))


def assert_found(actual, expected):
    """Equal; floats come of fp64 sums, whose order may change their last places."""
    if is_dataclass(actual):
        for field in fields(actual):
            assert_found(getattr(actual, field.name), getattr(expected, field.name))
    elif isinstance(actual, dict):
        assert list(actual) == list(expected)
        assert_found(tuple(actual.values()), tuple(expected.values()))
    elif isinstance(actual, (tuple, list)):
        for one, other in zip(actual, expected, strict=True):
            assert_found(one, other)
    elif isinstance(actual, np.ndarray):
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(actual, float):
        assert actual == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)
    else:
        assert actual == expected


def labels_of(name):
    return "abc"[: load_method(name).models[1] or 3]


def case_of(name, shared, values, sizes, dtypes, *, seed=0, **options):
    """A case with random tensors of these sizes; the models' dtypes follow one another."""
    draw, labels = torch.Generator().manual_seed(seed), labels_of(name)
    made = {
        f"t{i}": {
            label: VALUES[values](DTYPES[dtypes[at % len(dtypes)]], size, draw)
            for at, label in enumerate(("base", *labels))
        }
        for i, size in enumerate(sizes)
    }
    given_shared = shared_of(name, lambda_=0.9, t=0.3, select_topk=0.4) | shared
    return Case(name, given_shared, made, each_of(name, labels, **PARAMETERS), **options)


MIXTURES = [
    ("BF16", ["BF16"]),
    ("F16", ["F16", "BF16", "F32"]),
    ("F32", ["F32"]),
    ("BF16", ["F32", "F16"]),
    ("F16", ["F16"]),
    ("F32", ["BF16", "F16", "BF16"]),
]


def test_kernels_are_found():
    assert len({name for name, _ in FUSED}) >= 7
    assert len(FUSED) >= 40


@pytest.mark.parametrize("values", list(VALUES))
@every_kernel
def test_a_kernel_gives_the_bits_of_the_definition(name, shared, values):
    for at, (size, (out, dtypes)) in enumerate(zip(SIZES, itertools.cycle(MIXTURES), strict=False)):
        assert_fused(case_of(name, shared, values, [size], dtypes, seed=at, first=at % 3), out)


@pytest.mark.parametrize(("out", "dtypes"), MIXTURES, ids=str)
@every_fused_method
def test_a_kernel_reads_and_writes_any_mixture_of_dtypes(name, out, dtypes):
    for values in ("normal", "any_bits", "whole"):
        assert_fused(case_of(name, {}, values, [5000], dtypes), out)


def scopes(case):
    """The same tensors, together where the method measures them so, else one by one."""
    method = load_method(case.name)
    each, shared = method.each(**case.each["a"]), method.shared(**case.shared)
    if method.scope(each, shared) is not None:
        return [case]
    return [replace(case, tensors={name: rows}) for name, rows in case.tensors.items()]


@every_kernel
def test_blocks_and_tensors_of_one_scope_are_measured_together(name, shared):
    for cut, values in ((1000, "whole"), (256, "normal"), (2049, "subnormal")):
        case = case_of(name, shared, values, [3001, 0, 515], ["BF16"], cut=cut)
        if len(labels_of(name)) > load_method(name).models[0]:  # the last tensor lacks a model
            del case.tensors["t2"]["c"]
        for one in scopes(case):
            assert_fused(one)


@every_kernel
def test_rows_stay_whole(name, shared):
    case = case_of(name, shared, "whole", [30 * 37], ["BF16", "F16"], columns=37, cut=100)
    assert_fused(case, "BF16")


@pytest.mark.parametrize(("values", "at"), [("whole", 0), ("normal", -1)])
@every_fused_method
def test_a_tensor_larger_than_a_block_is_merged_as_by_definition(name, values, at):
    shared = [shared for method, shared in FUSED if method == name][at]
    assert_fused(case_of(name, shared, values, [BLOCK + 1000], ["BF16"]), "BF16")


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@every_kernel
def test_every_density_is_kept_to(name, shared, density):
    case = case_of(name, shared, "whole", [2500], ["BF16"])
    each = each_of(name, labels_of(name), weight=0.5, density=density, gamma=1 - density)
    method = load_method(name)
    try:
        method.check([method.each(**one) for one in each.values()], method.shared(**shared))
    except ValueError:
        pytest.skip("refused by the method's check")
    assert_fused(Case(name, case.shared, case.tensors, each))


@pytest.mark.parametrize(
    ("name", "shared", "each"),
    [
        ("linear", {"normalize": False}, {"weight": 1e39}),
        ("linear", {"normalize": True}, {"weight": 1e39}),
        ("task_arithmetic", {"lambda_": -1e300}, {}),
        ("dare_linear", {}, {"density": 1e-40}),
    ],
)
def test_a_factor_beyond_fp32_is_infinite_as_in_torch(name, shared, each):
    case = case_of(name, shared, "whole", [100], ["BF16"])
    assert_fused(replace(case, each=each_of(name, labels_of(name), **each)))


# Anything.

tied = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-39, 6e-8, 3e4, 3.4e38, -3.4e38])
numbers = tied | st.floats(width=32, allow_nan=False, allow_infinity=False)
factors = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-9]) | st.floats(-3, 3)
shares = st.sampled_from([0.0, 1.0, 0.5, 0.25]) | st.floats(1e-6, 1)
dtype_names = st.sampled_from(list(DTYPES))


def rounded(values, name):
    """In a dtype, without what would be infinite there."""
    span = torch.finfo(DTYPES[name])
    return torch.tensor(values, dtype=torch.float64).clamp(span.min, span.max).to(DTYPES[name])


@st.composite
def cases(draw):
    name, shared = draw(st.sampled_from(FUSED))
    method, count = load_method(name), draw(st.integers(0, 40))
    labels = "abc"[: draw(st.integers(method.models[0], method.models[1] or 3))]
    rows = {x: draw(st.lists(numbers, min_size=count, max_size=count)) for x in ("base", *labels)}
    tensors = {"t": {label: rounded(row, draw(dtype_names)) for label, row in rows.items()}}
    ranges = {"weight": factors, "scale": factors, "density": shares, "gamma": shares}
    each = {
        label: {k: draw(v) for k, v in ranges.items() if k in method.each.model_fields}
        for label in labels
    }
    chosen = shared | shared_of(
        name, lambda_=draw(factors), t=draw(factors), select_topk=draw(shares)
    )
    columns = draw(st.sampled_from([d for d in range(1, count + 1) if count % d == 0] or [1]))
    cut, first = draw(st.integers(1, 50)), draw(st.integers(0, 9))
    try:
        method.check([method.each(**one) for one in each.values()], method.shared(**chosen))
    except ValueError:
        assume(False)
    return Case(name, chosen, tensors, each, columns, cut, first, draw(st.integers(0, 99)))


@settings(deadline=None, max_examples=300)
@given(case=cases(), out=dtype_names)
def test_a_kernel_gives_the_bits_of_the_definition_of_anything(case, out):
    assert_fused(case, out)
