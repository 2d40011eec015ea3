"""Rows beside those that mergekit-tokensurgeon's own functions make of the same input."""

import pytest
import torch
from landmarked import rows, table, task
from mergekit.tokensurgeon.common_interpolation import (
    DistanceMetric,
    WeightingScheme,
    common_interp_approximate,
)
from mergekit.tokensurgeon.omp import batch_omp

DONOR, BASE, KNOWN = table(460, 48), table(460, 32, seed=1), 400


@pytest.mark.parametrize("k", [1, 8, 32])
def test_omp_makes_the_rows_that_mergekit_makes(k):
    ids, weights = batch_omp(DONOR[KNOWN:], DONOR[:KNOWN], k)
    expected = torch.einsum("nk,nkd->nd", weights, BASE[ids])
    made = rows(task(BASE, DONOR, KNOWN), "omp", k=k, center=False)
    assert torch.equal(made.ids, ids)
    torch.testing.assert_close(made.rows, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", WeightingScheme)
@pytest.mark.parametrize("metric", DistanceMetric)
def test_interpolation_makes_the_rows_that_mergekit_makes(metric, scheme):
    ids, weights = common_interp_approximate(DONOR[KNOWN:], DONOR[:KNOWN], 8, metric, scheme)
    expected = torch.einsum("nk,nkd->nd", weights, BASE[ids])
    made = rows(
        task(BASE, DONOR, KNOWN),
        "common_interpolation",
        k=8,
        metric=metric.value,
        weights=scheme.value,
    )
    torch.testing.assert_close(made.rows, expected, rtol=1e-4, atol=2e-4)


def test_mergekit_makes_nothing_of_a_row_of_zeros_and_we_make_the_mean():
    donor = DONOR.clone()
    donor[KNOWN], donor[:4] = 0, 0
    _, weights = batch_omp(donor[KNOWN : KNOWN + 1], donor[:KNOWN], 8)
    assert weights.isnan().any()
    made = rows(task(BASE, donor, KNOWN), "omp", k=8)
    torch.testing.assert_close(made.rows[0], BASE[4:KNOWN].mean(0))
