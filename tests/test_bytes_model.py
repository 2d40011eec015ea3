"""Byte-level probabilities of a toy bigram model, against all encodings enumerated."""

import math
from itertools import product

import numpy as np
import pytest

from mergepipe.model.bytes import ByteModel, Ids

TOKENS = {0: b"a", 1: b"b", 2: b"ab"}
BIGRAMS = {None: (0.5, 0.2, 0.3), 0: (0.6, 0.1, 0.3), 1: (0.3, 0.5, 0.2), 2: (0.2, 0.3, 0.5)}
TEXTS = [bytes(t) for size in range(1, 5) for t in product(b"ab", repeat=size)]


def encode(text: bytes) -> Ids:
    """Merge a and b: the only merge of this BPE."""
    marked = text.replace(b"ab", b"c")
    return tuple({"a": 0, "b": 1, "c": 2}[letter] for letter in marked.decode())


def logprobs(ids: Ids) -> np.ndarray:
    return np.log(BIGRAMS[ids[-1] if ids else None])


def toy() -> ByteModel:
    return ByteModel(
        TOKENS,
        lambda texts: [(encode(text),) for text in texts],
        lambda lefts: [logprobs(ids) for ids in lefts],
    )


def enumerated(text: bytes) -> float:
    total = 0.0
    for size in range(1, len(text) + 1):
        for ids in product(TOKENS, repeat=size):
            whole = b"".join(TOKENS[i] for i in ids)
            inside = len(whole) - len(TOKENS[ids[-1]]) < len(text)
            if whole.startswith(text) and inside and encode(whole) == ids:
                total += math.exp(sum(logprobs(ids[:at])[i] for at, i in enumerate(ids)))
    return total


@pytest.mark.parametrize("text", TEXTS)
def test_a_texts_probability_is_that_of_all_its_covers(text: bytes) -> None:
    starts = toy().logprobs_of_starts(text)
    expected = [1.0, *(enumerated(text[:end]) for end in range(1, len(text) + 1))]
    assert np.exp(starts) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("text", [b"", *TEXTS])
def test_next_bytes_sum_to_one_and_no_byte_adds_probability(text: bytes) -> None:
    model = toy()
    assert sum(map(math.exp, model.next_bytes(text))) == pytest.approx(1, abs=1e-12)
    assert all(model.logprob(text + b) <= model.logprob(text) + 1e-12 for b in (b"a", b"b"))


@pytest.mark.parametrize("text", [b"", *TEXTS])
def test_next_bytes_are_ratios_of_texts_however_one_came_there(text: bytes) -> None:
    model = toy()
    chances = [enumerated(text + byte) for byte in (b"a", b"b")]
    expected = [chance / sum(chances) for chance in chances]
    walked = model.state(b"")
    for byte in text:
        walked = walked.follow(byte)
    ahead = walked.ahead()[:256]
    found = [math.exp(model.next_bytes(text)[ord(byte)]) for byte in "ab"]
    assert found == pytest.approx(expected, rel=1e-12)
    assert [ahead[97] / ahead.sum(), ahead[98] / ahead.sum()] == pytest.approx(expected, rel=1e-12)


def test_after_a_boundary_that_no_token_crosses_bytes_are_as_likely_as_tokens() -> None:
    a_next = toy().next_bytes(b"b")[ord("a")]
    assert math.exp(a_next) == pytest.approx(0.3 + 0.2, rel=1e-12)
