"""Order statistics found in a stream are those of the sorted values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergepipe.method import Block, Parameters, Target, add_statistics, run_survey
from mergepipe.quantile import QUANTILE_SWEEPS, survey_order_statistics

floats = st.floats(width=32, allow_nan=False)


def blocks_of(values, size):
    values = torch.tensor(values, dtype=torch.float32)
    for start in range(0, max(len(values), 1), size):
        part = values[start : start + size]
        yield Block(Target("t", (len(values),)), start, None, (part,), ("a",), (), Parameters())


def searched(values, ranks, size=8):
    survey = survey_order_statistics(
        {"x": ranks, "-x": ranks}, lambda block: {"x": block.models[0], "-x": -block.models[0]}
    )
    blocks = list(blocks_of(values, size))
    return run_survey(survey, lambda measure: add_statistics(map(measure, blocks)))


@given(values=st.lists(floats, min_size=1, max_size=60), size=st.integers(1, 30), data=st.data())
def test_every_rank_gives_the_value_that_sorting_gives(values, size, data):
    ranks = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=4))
    ordered = np.sort(np.array(values, np.float32)).tolist()
    found = searched(values, ranks, size)
    assert found["x"] == tuple(ordered[rank] for rank in ranks)
    assert found["-x"] == tuple(-ordered[-1 - rank] for rank in ranks)


def test_infinite_tiny_and_equal_values_have_their_ranks():
    values = [float("inf"), 2.0**-149, -(2.0**-149), 0.0, -0.0, 2.0, 2.0, float("-inf")]
    assert searched(values, range(8))["x"] == tuple(sorted(values))


def test_zeros_are_one_value():
    assert str(searched([-0.0], [0])["x"][0]) == "0.0"


def test_values_are_swept_twice():
    swept = []
    survey = survey_order_statistics({"x": (0, 2)}, lambda block: {"x": block.models[0]})
    (block,) = blocks_of([3.0, 1.0, 2.0], 8)
    run_survey(survey, lambda measure: swept.append(measure) or measure(block))
    assert len(swept) == QUANTILE_SWEEPS


def test_a_rank_beyond_the_values_is_our_fault():
    with pytest.raises(AssertionError):
        searched([1.0], [1])
