"""Fused loops against their definitions, and random numbers against published ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from packing import DTYPES, VALUES, pack_tensors

from mergepipe.kernels.packed import pack
from mergepipe.kernels.random import (
    fill,
    keep_mask,
    keep_mask_torch,
    philox,
    random_words,
    random_words_torch,
    stream_key,
)
from mergepipe.kernels.ranks import prune_rows
from mergepipe.kernels.select import (
    HIGH_BINS,
    LARGEST,
    LOW_BINS,
    Bracket,
    bracket,
    collect,
    collect_torch,
    count_equal,
    count_high,
    count_high_torch,
    count_low,
    count_low_torch,
    locate,
    magnitude_bits,
    magnitudes,
    within,
)
from mergepipe.magprune import row_probabilities
from mergepipe.method import Block, Target, add_statistics, measure_blocks, run_survey
from mergepipe.trim import keep_largest, survey_largest, variance

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
patterns = st.integers(0, LARGEST)


def bits_of(values):
    """Bit patterns of magnitudes: uint32."""
    return np.abs(values).view(np.uint32)


def packed_deltas(values, first=0):
    """A packed block with base 0 and one model."""
    model = torch.from_numpy(values)
    return pack_tensors([torch.zeros(len(values)), model], based=True, first=first)


# Histograms.


@quick
@given(values=vectors, data=st.data())
def test_two_counts_locate_the_kth_largest_magnitude(values, data):
    rank = data.draw(st.integers(1, len(values)))
    high, above = locate(count_high(bits_of(values)), rank)
    low, between = locate(count_low(bits_of(values), high), rank - above)
    found = np.array(high << 16 | low, np.uint32).view(np.float32)
    assert found == np.sort(np.abs(values))[::-1][rank - 1]
    assert above + between == (np.abs(values) > found).sum()


@every_device
@quick
@given(values=vectors, high=st.integers(0, HIGH_BINS - 1))
def test_counting_on_the_cpu_is_counting_by_definition(device, values, high):
    bits, tensor = bits_of(values), magnitude_bits(torch.from_numpy(values)).to(device)
    assert np.array_equal(count_high(bits), count_high_torch(tensor))
    for found in (high, int(bits[0]) >> 16):
        assert np.array_equal(count_low(bits, found), count_low_torch(tensor, found))


@quick
@given(values=vectors, at=st.integers(0, 80))
def test_counts_of_parts_add_up(values, at):
    bits = bits_of(values)
    parts = [count_high(bits[:at]), count_high(bits[at:])]
    assert np.array_equal(sum(parts), count_high(bits))
    assert count_high(bits).sum() == len(values)


def test_counting_nothing_gives_zeros():
    nothing = np.empty(0, np.uint32)
    assert count_high(nothing).tolist() == [0] * HIGH_BINS
    assert count_low(nothing, 0).tolist() == [0] * LOW_BINS


@quick
@given(values=vectors)
def test_bit_patterns_order_like_magnitudes(values):
    bits = magnitude_bits(torch.from_numpy(values)).numpy()
    magnitudes = np.abs(values)
    order = np.argsort(bits, kind="stable")
    assert (np.diff(magnitudes[order]) >= 0).all()
    assert ((bits[:, None] == bits) == (magnitudes[:, None] == magnitudes)).all()


# Brackets.


@st.composite
def brackets(draw, values):
    """Two patterns, mostly such that occur or are next to one that does."""
    near = st.sampled_from(bits_of(values).tolist())
    ends = near | near.map(lambda at: at + 1) | near.map(lambda at: max(at - 1, 0)) | patterns
    low, high = sorted(min(draw(ends), LARGEST) for _ in range(2))
    return Bracket(low, high)


def cut(values, data):
    """The same values in up to three parts."""
    at = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=2)))
    return np.split(values, at)


@quick
@given(values=vectors, data=st.data(), times=st.sampled_from([1, 100]))
def test_what_a_bracket_answers_is_true_and_it_answers_unless_it_cannot(values, data, times):
    values = np.tile(values, times)
    rank, known = data.draw(st.integers(1, len(values))), data.draw(brackets(values))
    parts = [collect(packed_deltas(part), [1], [known])[0] for part in cut(values, data)]
    sought = int(np.sort(bits_of(values))[::-1][rank - 1])
    found = within(parts, known, rank)
    if found is None:
        overflowed = any(part.overflowed for part in parts)
        assert overflowed or not known.low <= sought <= known.high
    else:
        assert found == (sought, int((bits_of(values) > sought).sum()))
        assert sum(part.count(known, sought) for part in parts) == (bits_of(values) == sought).sum()


def about(part):
    """What a part says, the order inside left out."""
    return part.above, part.at_high, part.at_low, sorted(part.inside.tolist())


def pairs(dtypes=tuple(DTYPES)):
    return pytest.mark.parametrize("dtypes", list(itertools.product(dtypes, repeat=2)), ids=str)


@pairs()
@pytest.mark.parametrize("values", list(VALUES.values()), ids=list(VALUES))
def test_collecting_on_the_cpu_is_collecting_by_definition(dtypes, values):
    draw = torch.Generator().manual_seed(0)
    base, model = (values(DTYPES[name], 2500, draw) for name in dtypes)
    packed = pack_tensors([base, model, base], based=True, first=3)
    bits = magnitude_bits(model.float() - base.float())
    ends = bits.sort().values[[1150, 1300]].tolist()
    known = [Bracket(*ends), Bracket(ends[0], ends[0]), Bracket(0, 0), Bracket(ends[0], LARGEST)]
    found = collect(packed, [1, 1, 1, 1], known)
    for one, at in zip(found, known, strict=True):
        expected = collect_torch(bits, at)
        assert one.overflowed == (len(expected.inside) > 2500 // 8 + 1024)
        assert one.overflowed or about(one) == about(expected)
    assert count_equal(packed, [1, 1, 2], [ends[0], 0, 0]).tolist() == [
        int((bits == ends[0]).sum()),
        int((bits == 0).sum()),
        2500,
    ]


@pairs()
@pytest.mark.parametrize("values", list(VALUES.values()), ids=list(VALUES))
def test_magnitudes_on_the_cpu_are_magnitudes_by_definition(dtypes, values):
    draw = torch.Generator().manual_seed(0)
    base, model = (values(DTYPES[name], 2049, draw) for name in dtypes)
    other = values(torch.float32, 2049, draw)
    packed = pack_tensors([base, model, other], based=True, first=5)
    block = Block(Target("t"), 0, base.float(), (model.float(), other), ("a", "b"), (), None)
    for row, delta in enumerate(block.deltas, 1):
        assert magnitudes(packed, row).tolist() == magnitude_bits(delta).tolist()
    assert magnitudes(packed, -1).tolist() == magnitude_bits(variance(block)).tolist()


def test_several_models_are_collected_in_one_sweep():
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randn(5000, generator=draw) for _ in range(4)]
    packed = pack_tensors(rows, based=True)
    bits = [magnitude_bits(row - rows[0]) for row in rows[1:]]
    known = [Bracket(*one.sort().values[[2000, 2300]].tolist()) for one in bits]
    found = collect(packed, [1, 2, 3], known)
    expected = [collect_torch(one, at) for one, at in zip(bits, known, strict=True)]
    assert list(map(about, found)) == list(map(about, expected))


@quick
@given(values=vectors, data=st.data())
def test_a_bracket_is_made_of_any_sample(values, data):
    rank, size = data.draw(st.integers(1, 1000)), data.draw(st.integers(1000, 10**12))
    known = bracket(bits_of(values), rank, size)
    assert 0 <= known.low <= known.high <= LARGEST


# The largest of packed blocks. What is sampled are the first elements of each block.


def rising_in_blocks(count, draw):
    return torch.randn(count, generator=draw).abs().reshape(-1, BLOCK).sort().values.flatten()


def falling_in_blocks(count, draw):
    return rising_in_blocks(count, draw).flip(0)


def zeros_first(count, draw):
    values = torch.randn(count // BLOCK, BLOCK, generator=draw)
    values[:, : BLOCK // 2] = 0
    return values.flatten()


def huge_first(count, draw):
    values = torch.randn(count // BLOCK, BLOCK, generator=draw)
    values[:, : BLOCK // 2] = 3e38
    return values.flatten()


def alike(count, _):
    return torch.full((count,), -0.25)


def two_values(count, draw):
    return torch.randint(0, 2, (count,), generator=draw).float() + 1


def near_each_other(count, draw):
    words = torch.randint(0, 5, (count,), generator=draw) + 0x3F800000
    return words.to(torch.int32).view(torch.float32)


def drawn(kind):
    return lambda count, draw: VALUES[kind](torch.float32, count, draw)


BLOCK = 1 << 15
ADVERSARIES = {
    found.__name__: found
    for found in (
        rising_in_blocks,
        falling_in_blocks,
        zeros_first,
        huge_first,
        alike,
        two_values,
        near_each_other,
    )
} | {kind: drawn(kind) for kind in ("normal", "signed_zeros", "subnormal", "large", "any_bits")}


def in_blocks(values, size):
    """Blocks of a model with base 0, packed, and as tensors."""
    zero, labels = torch.zeros(len(values)), ("a",)
    for at in range(0, max(len(values), 1), size):
        part, base = values[at : at + size], zero[at : at + size]
        packed = pack_tensors([base, part], based=True)
        yield (
            Block(Target("t"), at, None, (), labels, (), None, packed=packed),
            Block(Target("t"), at, base, (part,), labels, (), None),
        )


def kept_of_packed(values, count, size):
    """What stays after a survey of packed blocks."""
    packed, plain = zip(*in_blocks(values, size), strict=True)
    survey = survey_largest({"a": len(values)}, {"a": count})
    trims = run_survey(survey, lambda m: add_statistics(measure_blocks(m, packed)))
    return torch.cat([keep_largest(block, trims)[0] for block in plain])


def largest_by_sorting(values, count):
    first = values.abs().sort(descending=True, stable=True).indices[:count]
    return torch.zeros_like(values).index_put((first,), values[first])


@pytest.mark.parametrize("share", [1e-6, 1e-4, 0.2, 0.5, 0.8, 0.9999])
@pytest.mark.parametrize("values", list(ADVERSARIES.values()), ids=list(ADVERSARIES))
def test_a_sample_that_misleads_never_changes_what_is_kept(values, share):
    found = values(8 * BLOCK, torch.Generator().manual_seed(0))
    count = math.ceil(share * len(found))
    assert torch.equal(kept_of_packed(found, count, BLOCK), largest_by_sorting(found, count))


@quick
@given(values=vectors, data=st.data(), size=st.integers(1, 90))
def test_the_largest_of_packed_blocks_are_the_first_of_a_stable_sort(values, data, size):
    count, found = data.draw(st.integers(0, len(values))), torch.from_numpy(values)
    assert torch.equal(kept_of_packed(found, count, size), largest_by_sorting(found, count))


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
@given(key=keys, start=starts, count=st.integers(0, 40))
def test_a_room_is_filled_with_whole_counters_and_says_where_the_words_begin(key, start, count):
    room = np.full((start % 4 + count + 3) // 4 * 4, 7, np.uint32)
    first = fill(np.uint64(key), start, room)
    words = random_words_torch(key, start - first, room.size, CPU)
    assert room.tolist() == words.tolist()
    assert room[first : first + count].tolist() == random_words(key, start, count).tolist()


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


# Pruning by ranks.

SHAPES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "few values": lambda rng, n: rng.integers(-3, 4, n) * 0.5,
    "zeros": lambda _, n: np.zeros(n),
    "one value": lambda _, n: np.full(n, -0.25),
    "far outliers": lambda rng, n: rng.standard_normal(n) * np.exp(6 * rng.standard_normal(n)),
    "subnormal": lambda rng, n: rng.integers(-4, 5, n) * 1e-45,
}


@pytest.mark.parametrize("columns", [1, 2, 3, 17, 64, 576, 4100])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_pruned_as_if_they_were_sorted(columns, shape):
    rng, rows = np.random.default_rng(columns), 8
    delta = SHAPES[shape](rng, rows * columns).astype(np.float32)
    packed = pack([np.zeros_like(delta), delta], based=True)
    order = np.abs(delta.reshape(rows, columns)).argsort(axis=1, kind="stable")
    ranks = order.argsort(axis=1).ravel()
    words = random_words(9, 5, delta.size).astype(np.uint64)
    for density, epsilon in ((0.5, 0.15), (0.5, 0.49), (0.3, 0.0), (1.0, 0.1), (0.0, 0.1)):
        q = row_probabilities(columns, density, epsilon)
        keep = words < np.floor(q * 2**32).astype(np.uint64)[ranks]
        for factor in (1.7, None):
            pruned = prune_rows(packed, 1, q, factor=factor, key=9, first=5)
            with np.errstate(invalid="ignore", divide="ignore"):
                scaled = (
                    delta / q.astype(np.float32)[ranks]
                    if factor is None
                    else delta * np.float32(1.7)
                )
            assert np.array_equal(pruned, np.where(keep, scaled, np.float32(0)))
