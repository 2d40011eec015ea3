"""Values as stored -> fp32 and back, against torch, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packing import DTYPES, as_bytes, bits_of

from mergepipe.kernels.tiles import KINDS, is_finite, load, load_delta, store

every_dtype = pytest.mark.parametrize("name", list(DTYPES))
narrow = pytest.mark.parametrize("name", ["BF16", "F16"])


def all_halves(name):
    """All 65536 values of a dtype of 2 bytes."""
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(DTYPES[name])


def widened(values, start=0, stop=None):
    """What `load` makes of some elements."""
    name = {dtype: name for name, dtype in DTYPES.items()}[values.dtype]
    out = np.empty((values.numel() if stop is None else stop) - start, np.float32)
    load(as_bytes(values), KINDS[name], start, out)
    return torch.from_numpy(out)


def rounded(values, name, start=0):
    """What `store` makes of fp32, from element `start` on, between others that are kept."""
    size = DTYPES[name].itemsize
    out = np.full((values.numel() + start + 1) * size, 0xAB, np.uint8)
    store(values.numpy(), KINDS[name], out, start)
    inner = slice(start * size, -size)
    assert (np.delete(out, np.arange(out.size)[inner]) == 0xAB).all()
    words = out[inner].copy().view(np.int32 if size == 4 else np.int16)
    return torch.from_numpy(words).view(DTYPES[name])


def assert_bits(actual, expected):
    assert torch.equal(bits_of(actual), bits_of(expected))


def around_boundaries(name):
    """Every finite value of a dtype, and midpoints to the next one, each with its neighbours."""
    values = all_halves(name).float()
    ordered = values[values.isfinite()].sort().values
    middles = ordered[1:] / 2 + ordered[:-1] / 2
    centers = torch.cat([ordered, middles])
    inf = torch.tensor(torch.inf)
    return torch.cat([centers, centers.nextafter(inf), centers.nextafter(-inf)])


def random_patterns(count=1 << 20):
    words = torch.randint(-(1 << 31), 1 << 31, (count,), generator=torch.Generator().manual_seed(0))
    return words.to(torch.int32).view(torch.float32)


# Widening.


@narrow
def test_every_half_is_widened_exactly(name):
    assert_bits(widened(all_halves(name)), all_halves(name).float())


def test_fp32_is_read_as_it_is():
    values = random_patterns(5000)
    assert torch.equal(widened(values).view(torch.int32), values.view(torch.int32))


@every_dtype
@pytest.mark.parametrize("start", [0, 1, 7, 4999, 5000])
def test_a_run_is_widened_from_where_it_begins(name, start):
    values = random_patterns(5000).to(DTYPES[name])
    assert_bits(widened(values, start, 5000), values.float()[start:])


@every_dtype
def test_a_difference_is_rounded_once(name):
    values, base = random_patterns(5000).to(DTYPES[name]), random_patterns(5001)[1:]
    out = np.empty(5000, np.float32)
    load_delta(as_bytes(values), KINDS[name], 0, base.numpy(), out)
    assert_bits(torch.from_numpy(out), values.float() - base)


# Rounding.


@narrow
def test_every_half_comes_back_from_fp32(name):
    assert_bits(rounded(all_halves(name).float(), name), all_halves(name))


@narrow
def test_values_around_every_boundary_are_rounded_as_torch_does(name):
    values = around_boundaries(name)
    assert values.numel() > 300_000 * (name == "F16")
    assert_bits(rounded(values, name), values.to(DTYPES[name]))


@every_dtype
def test_random_bit_patterns_are_rounded_as_torch_does(name):
    assert_bits(rounded(random_patterns(), name), random_patterns().to(DTYPES[name]))


@every_dtype
@pytest.mark.parametrize("start", [0, 1, 5])
@pytest.mark.parametrize("count", [0, 1, 2049])
def test_only_the_run_is_written(name, start, count):
    values = random_patterns(count)
    assert_bits(rounded(values, name, start), values.to(DTYPES[name]))


# Worked by hand: 2^-24 is the smallest half; 65504 the largest, and 65520 half-way to the next.
HALVES = [
    (1 + 2**-11, 1.0),
    (1 + 3 * 2**-11, 1 + 2**-9),
    (2**-25, 0.0),
    (3 * 2**-25, 2**-23),
    (2**-25 + 2**-40, 2**-24),
    (2**-14 - 2**-25, 2**-14),
    (65519.996, 65504.0),
    (65520.0, np.inf),
    (0.0, 0.0),
    (1e-45, 0.0),
    (np.inf, np.inf),
]
BRAINS = [(1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6), (3.4e38, np.inf), (1e-45, 0.0)]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("name", "exact", "nearest"),
    [("F16", *row) for row in HALVES] + [("BF16", *row) for row in BRAINS],
)
def test_ties_go_to_the_even_neighbour_and_signs_stay(name, sign, exact, nearest):
    found = rounded(torch.tensor([exact], dtype=torch.float32) * sign, name).double().numpy()
    assert found.view(np.int64) == np.array([nearest * sign]).view(np.int64)


# Finite or not.


@every_dtype
def test_all_finite_values_are_finite(name):
    values = random_patterns().to(DTYPES[name])
    finite = values[values.isfinite()]
    assert is_finite(as_bytes(finite), KINDS[name], 0, finite.numel())
    assert is_finite(as_bytes(finite), KINDS[name], 3, 0)


@every_dtype
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 1, 2500, 4999])
def test_one_value_that_is_not_finite_is_found_only_inside_the_run(name, bad, at):
    values = torch.ones(5000, dtype=DTYPES[name])
    values[at] = bad
    data, kind = as_bytes(values), KINDS[name]
    assert not is_finite(data, kind, 0, 5000)
    assert not is_finite(data, kind, at, 1)
    assert is_finite(data, kind, 0, at)
    assert is_finite(data, kind, at + 1, 4999 - at)


@narrow
def test_halves_are_finite_one_by_one_as_torch_says(name):
    values = all_halves(name)
    found = [is_finite(as_bytes(values), KINDS[name], at, 1) for at in range(0, 1 << 16, 7)]
    assert found == values.isfinite()[::7].tolist()
