"""Fused loops against their definitions, and random numbers against published ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mergepipe.kernels.random import (
    keep_mask,
    keep_mask_torch,
    philox,
    random_words,
    random_words_torch,
    stream_key,
)
from mergepipe.kernels.select import (
    HIGH_BINS,
    LOW_BINS,
    count_high,
    count_high_torch,
    count_low,
    count_low_torch,
    locate,
    magnitude_bits,
)

CPU = torch.device("cpu")
# The definitions run on whatever is there; the numba twins on the CPU.
DEVICES = [CPU] + [torch.device("cuda")] * torch.cuda.is_available()
every_device = pytest.mark.parametrize("device", DEVICES, ids=str)
quick = settings(deadline=None, max_examples=150)
tied = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 1e-39, 3.4028234e38, -3.4028234e38])
floats = tied | st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = arrays(np.float32, array_shapes(max_dims=1, max_side=80), elements=floats)
keys = st.integers(0, 2**64 - 1)
starts = st.integers(0, 50) | st.integers(2**34 - 8, 2**34 + 8)


# Selection.


@quick
@given(values=vectors, data=st.data())
def test_two_counts_locate_the_kth_largest_magnitude(values, data):
    rank = data.draw(st.integers(1, len(values)))
    high, above = locate(count_high(torch.from_numpy(values)), rank)
    low, between = locate(count_low(torch.from_numpy(values), high), rank - above)
    found = np.array(high << 16 | low, np.uint32).view(np.float32)
    assert found == np.sort(np.abs(values))[::-1][rank - 1]
    assert above + between == (np.abs(values) > found).sum()


@every_device
@quick
@given(values=vectors, high=st.integers(0, HIGH_BINS - 1))
def test_counting_on_the_cpu_is_counting_by_definition(device, values, high):
    tensor = torch.from_numpy(values)
    present = int(magnitude_bits(tensor)[0]) >> 16
    assert np.array_equal(count_high(tensor), count_high_torch(tensor.to(device)))
    for found in (high, present):
        assert np.array_equal(count_low(tensor, found), count_low_torch(tensor.to(device), found))


@quick
@given(values=vectors, at=st.integers(0, 80))
def test_counts_of_parts_add_up(values, at):
    tensor = torch.from_numpy(values)
    parts = [count_high(tensor[:at]), count_high(tensor[at:])]
    assert np.array_equal(sum(parts), count_high(tensor))
    assert count_high(tensor).sum() == len(values)


def test_counting_reads_views_with_strides_and_empty_tensors():
    tensor = torch.arange(10.0)
    assert np.array_equal(count_high(tensor[::2]), count_high(tensor[::2].clone()))
    assert count_high(tensor[:0]).tolist() == [0] * HIGH_BINS
    assert count_low(tensor[:0], 0).tolist() == [0] * LOW_BINS


@quick
@given(values=vectors)
def test_bit_patterns_order_like_magnitudes(values):
    bits = magnitude_bits(torch.from_numpy(values)).numpy()
    magnitudes = np.abs(values)
    order = np.argsort(bits, kind="stable")
    assert (np.diff(magnitudes[order]) >= 0).all()
    assert ((bits[:, None] == bits) == (magnitudes[:, None] == magnitudes)).all()


# Random numbers. Known answers: Random123 (the authors' library), kat_vectors, philox4x32 10.

ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@every_device
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_words(device, counter, key, words):
    given_words = philox(tuple(torch.tensor(word, device=device) for word in counter), key)
    assert " ".join(f"{word:08x}" for word in given_words.tolist()) == words


def test_the_first_stream_starts_with_the_published_words():
    assert " ".join(f"{word:08x}" for word in random_words(0, 0, 4)) == KNOWN[0][2]


@every_device
@quick
@given(key=keys, start=starts, count=st.integers(0, 40))
def test_words_on_the_cpu_are_words_by_definition(device, key, start, count):
    words = random_words_torch(key, start, count, device)
    assert random_words(key, start, count).tolist() == words.tolist()


@quick
@given(key=keys, start=starts, count=st.integers(1, 40), at=st.integers(0, 40))
def test_a_slice_of_a_stream_is_drawn_alone(key, start, count, at):
    whole = random_words(key, start, count + at)
    assert random_words(key, start + at, count).tolist() == whole[at:].tolist()


@every_device
@quick
@given(key=keys, start=starts, count=st.integers(0, 40), density=st.floats(0, 1))
def test_masks_on_the_cpu_are_masks_by_definition(device, key, start, count, density):
    mask = keep_mask_torch(key, start, count, density, device)
    assert keep_mask(key, start, count, density, CPU).tolist() == mask.tolist()


def test_density_zero_keeps_nothing_and_density_one_everything():
    assert not keep_mask(1, 0, 1000, 0.0, CPU).any()
    assert keep_mask(1, 0, 1000, 1.0, CPU).all()


def test_a_larger_density_keeps_all_that_a_smaller_one_keeps():
    few, many = keep_mask(1, 0, 1000, 0.2, CPU), keep_mask(1, 0, 1000, 0.6, CPU)
    assert (few <= many).all()
    assert few.sum() < many.sum()


def test_words_are_spread_evenly():
    bits = np.unpackbits(random_words(7, 0, 1 << 16).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / bits.size**0.5


def test_every_seed_model_and_tensor_has_a_stream_of_its_own():
    texts = [(0, "a", "t"), (1, "a", "t"), (0, "b", "t"), (0, "a", "u"), (0, "a\0t", "")]
    assert len({stream_key(*text) for text in texts}) == len(texts)
