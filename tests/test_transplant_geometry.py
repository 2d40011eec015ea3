"""Transplant methods that look at where tokens lie: interpolation, linear maps, the choice."""

import numpy as np
import pytest
import torch
from landmarked import rows, table, task, vocabulary
from mergekit.tokensurgeon.common_interpolation import (
    DistanceMetric,
    WeightingScheme,
    common_interp_approximate,
)
from mergekit.tokensurgeon.pca import landmark_pca_approximate
from scipy.linalg import orthogonal_procrustes

from mergepipe.transplant import load_transplant
from mergepipe.transplant.segmenting import spelled_by_others

METHODS = ("omp", "common_interpolation", "affine", "landmark_pca", "sparse_basis")


@pytest.mark.parametrize("name", METHODS)
def test_rows_depend_on_neither_neighbours_nor_threads(name):
    donor, base = table(700, 24), table(700, 16, seed=1)
    method = load_transplant(name)
    one = method.fit(task(base, donor, 500), method.parameters())
    two = method.fit(task(base, donor, 500, threads=2), method.parameters())
    whole = one(np.arange(200)).rows
    assert whole.dtype == torch.float32
    assert torch.equal(two(np.array([150, 3])).rows, whole[[150, 3]])


def test_an_affine_image_is_found_exactly():
    donor = table(500, 24)
    weights = torch.randn(24, 40, generator=torch.Generator().manual_seed(2))
    base = donor @ weights + 2
    made = rows(task(base, donor, 400), "affine", ridge=0.0)
    torch.testing.assert_close(made.rows, base[400:], rtol=1e-4, atol=1e-4)


def test_the_affine_map_is_ridge_regression():
    donor, base = table(300, 12), table(300, 7, seed=1)
    center, mean = donor[:250].double().mean(0), base[:250].double().mean(0)
    x, y = donor[:250].double() - center, base[:250].double() - mean
    held = 0.5 * x.square().sum() / 12 * torch.eye(12, dtype=torch.float64)
    expected = (donor[250:].double() - center) @ torch.linalg.inv(x.T @ x + held) @ x.T @ y + mean
    made = rows(task(base, donor, 250), "affine", ridge=0.5)
    torch.testing.assert_close(made.rows, expected.float(), rtol=1e-5, atol=1e-5)


def noisy_turn():
    """A base that is the donor turned, with noise of 0.3 on 16 columns."""
    draws = torch.Generator().manual_seed(0)
    donor = torch.randn(2000, 16, generator=draws)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=draws))[0]
    clean = donor @ turn
    return donor, clean, clean + 0.3 * torch.randn(2000, 16, generator=draws)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("weights", ["distance_proportional", "barycentric", "least_squares"])
def test_common_interpolation_is_mergekit_tokensurgeons(metric, weights):
    donor, base = table(600, 24), table(600, 16, seed=1)
    made = rows(task(base, donor, 500), "common_interpolation", k=8, metric=metric, weights=weights)
    scheme, distance = WeightingScheme(weights), DistanceMetric(metric)
    ids, theirs = common_interp_approximate(donor[500:], donor[:500], 8, distance, scheme)
    expected = (theirs[:, :, None] * base[ids]).sum(1)
    torch.testing.assert_close(made.rows, expected, rtol=1e-3, atol=1e-3)


def test_landmark_pca_finds_a_turn_through_noise_that_mergekits_loses():
    donor, clean, base = noisy_turn()
    made = rows(task(base, donor, 1900), "landmark_pca")

    def error(found):
        return float((found - clean[1900:]).norm() / clean[1900:].norm())

    theirs = landmark_pca_approximate(donor[1900:], donor[:1900], base[:1900])
    assert error(made.rows) < 0.05
    assert error(theirs) > 0.5


def test_landmark_pca_with_all_axes_is_orthogonal_procrustes():
    donor, _, base = noisy_turn()
    x, y = (side[:1900].double().numpy() for side in (donor, base))
    turn, _ = orthogonal_procrustes(x - x.mean(0), y - y.mean(0))
    expected = (donor[1900:].double().numpy() - x.mean(0)) @ turn + y.mean(0)
    made = rows(task(base, donor, 1900), "landmark_pca")
    np.testing.assert_allclose(made.rows, expected, rtol=1e-5, atol=1e-5)


def test_the_sparse_basis_finds_a_linear_image():
    donor = table(500, 12)
    donor = donor - donor[:400].mean(0)
    base = donor @ torch.randn(12, 20, generator=torch.Generator().manual_seed(2))
    made = rows(task(base, donor, 400), "sparse_basis", k=4)
    torch.testing.assert_close(made.rows, base[400:], rtol=1e-3, atol=1e-3)


def test_neighbours_weigh_by_the_inverse_of_their_distance():
    donor = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [50.0, 50.0], [0.0, 0.0001]])
    base = torch.tensor([[1.0], [2.0], [9.0]])
    made = rows(task(base, donor, 3), "common_interpolation", k=2)
    torch.testing.assert_close(made.rows, torch.tensor([[1.25]]))


def test_neighbours_on_the_other_side_have_no_weight():
    donor = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [1.0, 1.0]])
    made = rows(task(donor[:2], donor, 2), "common_interpolation", k=2, metric="cosine")
    torch.testing.assert_close(made.rows, donor[:1])


def test_barycentric_weights_sum_to_one():
    made = rows(
        task(table(200, 8, 1), table(200, 8), 150),
        "common_interpolation",
        k=5,
        weights="barycentric",
    )
    torch.testing.assert_close(made.weights.sum(1), torch.ones(50))


def test_least_squares_explains_at_least_as_much_as_barycentric():
    made = task(table(200, 8, 1), table(200, 8), 150)
    free = rows(made, "common_interpolation", k=5, weights="least_squares").residual
    bound = rows(made, "common_interpolation", k=5, weights="barycentric").residual
    assert (free <= bound + 1e-6).all()


def test_axes_of_few_tokens_are_told_of_and_those_of_enough_make_rows_of_the_right_length():
    said = []
    donor = table(500, 64)
    base = donor + 0.3 * table(500, 64, seed=1)
    made = [
        rows(task(base, donor, 400, tell=said.append), "sparse_basis", **k).rows.norm(dim=1)
        for k in ({"k": 4}, {})
    ]
    few, enough = (found.median() / base[400:].norm(dim=1).median() for found in made)
    assert few > 2
    assert 0.9 < enough < 1.1
    assert ["raise k" in line for line in said] == [True]


def test_auto_takes_the_affine_map_where_the_base_is_one():
    said = []
    donor = table(900, 96)
    base = donor @ torch.randn(96, 40, generator=torch.Generator().manual_seed(2))
    made = rows(task(base, donor, 800, tell=said.append), "auto")
    assert said[-1] == "auto: affine"
    assert sum("median cosine" in line for line in said) == 9
    assert torch.equal(made.rows, rows(task(base, donor, 800), "affine").rows)


def test_auto_spells_tokens_where_the_spaces_have_nothing_in_common():
    # A token's row is the sum of its digits' rows, so spelling comes near; the donor is chance.
    said = []
    digits = table(10, 24, seed=1)
    base = torch.stack([sum(digits[int(one)] for one in str(n)) for n in range(500)])
    rows(task(base, table(500, 24), 400, tell=said.append), "auto")
    assert said[-1] == "auto: subword"


def test_pursuit_takes_as_many_atoms_as_serve_tokens_that_it_is_not_shown():
    said = []
    donor = table(700, 96)
    noisy = donor @ torch.randn(96, 64, generator=torch.Generator().manual_seed(2))
    alike = rows(task(donor, donor, 600, tell=said.append), "omp")
    assert "k = 64" in said[-1]
    assert torch.equal(alike.rows, rows(task(donor, donor, 600), "omp", k=64).rows)
    rows(task(noisy + 10 * table(700, 64, seed=3), donor, 600, tell=said.append), "omp")
    assert "k = 32" in said[-1]


def test_spelling_leaves_out_the_token_itself():
    found = vocabulary(30)
    assert [spelled_by_others(found, n, 2) for n in (17, 4)] == [[1, 7], []]
