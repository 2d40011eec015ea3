"""Orthogonal matching pursuit: supports of fp64, whatever the memory, threads and neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landmarked import rows, table, task
from mergekit.tokensurgeon.omp import batch_omp
from sklearn.linear_model import orthogonal_mp

from mergepipe.transplant.pursuit import Dictionary
from mergepipe.transplant.pursuit_dense import pursue_densely


def dense(found, atoms):
    """Coefficients of all atoms: [targets, atoms]."""
    out = np.zeros((len(found.ids), atoms))
    for row, ids, coefficients in zip(out, found.ids, found.coefficients, strict=True):
        row[ids[ids >= 0]] = coefficients[ids >= 0]
    return out


@pytest.mark.parametrize(("atoms", "columns", "k"), [(300, 40, 16), (3000, 96, 64), (5000, 256, 8)])
def test_supports_and_coefficients_are_scikit_learns_in_fp64(atoms, columns, k):
    values = table(atoms + 40, columns)
    found = Dictionary(values[:atoms]).pursue(values[atoms:], k)
    wide = values.double().numpy()
    expected = orthogonal_mp(wide[:atoms].T, wide[atoms:].T, n_nonzero_coefs=k).T
    np.testing.assert_allclose(dense(found, atoms), expected, rtol=1e-9, atol=1e-11)


def test_supports_are_those_of_mergekit_tokensurgeon():
    values = table(2040, 128)
    found = Dictionary(values[:2000]).pursue(values[2000:], 32)
    ids, coefficients = batch_omp(values[2000:].double(), values[:2000].double(), 32)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.coefficients, coefficients, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 700), st.integers(1, 24), st.integers(1, 30))
def test_any_dictionary_gives_what_mergekit_gives(seed, atoms, columns, k):
    values = table(atoms + 5, columns, seed)
    k = min(k, atoms, columns)
    found = Dictionary(values[:atoms]).pursue(values[atoms:], k)
    ids, _ = batch_omp(values[atoms:].double(), values[:atoms].double(), k)
    going = found.ids >= 0
    np.testing.assert_array_equal(found.ids[going], ids.numpy()[going])
    assert (going.all(axis=1) | (found.residual < 1e-6)).all()


def test_bytes_depend_on_neither_threads_nor_memory_nor_neighbours():
    values = table(6100, 64)
    atoms, targets = values[:6000], values[6000:]
    first = Dictionary(atoms, threads=1).pursue(targets, 48)
    again = Dictionary(atoms, threads=2, gram_bytes=6000 * 130).pursue(targets, 48)
    alone = Dictionary(atoms).pursue(targets[71:72], 48)
    assert first.ids.tobytes() == again.ids.tobytes()
    assert first.coefficients.tobytes() == again.coefficients.tobytes()
    assert first.coefficients[71:72].tobytes() == alone.coefficients.tobytes()


def test_an_accelerators_way_agrees():
    values = table(1030, 48)
    found = Dictionary(values[:1000]).pursue(values[1000:], 20)
    ids, coefficients, _ = pursue_densely(values[:1000], values[1000:], 20)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.coefficients, coefficients, rtol=1e-9)


def test_the_first_atoms_of_a_pursuit_are_those_of_a_shorter_one():
    values = table(1030, 48)
    atoms = Dictionary(values[:1000], normalize=True)
    found = atoms.pursue(values[1000:], 20)
    short, expected = (
        atoms.shortened(values[1000:], found, 7),
        atoms.pursue(values[1000:], 7),
    )
    np.testing.assert_array_equal(short.ids, expected.ids)
    np.testing.assert_allclose(short.coefficients, expected.coefficients, rtol=1e-9)
    np.testing.assert_allclose(short.residual, expected.residual, rtol=1e-9)


def test_atoms_that_are_left_out_are_as_if_they_were_not_there():
    values = table(1030, 48)
    held = np.arange(0, 1000, 7)
    rest = np.delete(np.arange(1000), held)
    expected = Dictionary(values[:1000][rest]).pursue(values[1000:], 20)
    found = Dictionary(values[:1000]).pursue(values[1000:], 20, held)
    np.testing.assert_array_equal(found.ids, rest[expected.ids])
    ids, _, _ = pursue_densely(values[:1000], values[1000:], 20, held)
    np.testing.assert_array_equal(ids, rest[expected.ids])


def test_of_equal_atoms_the_first_is_taken_and_never_the_second():
    atoms = torch.tensor([[0.0, 1.0], [3.0, 0.0], [3.0, 0.0], [-3.0, 0.0]])
    found = Dictionary(atoms).pursue(torch.tensor([[2.0, 0.5]]), 2)
    np.testing.assert_array_equal(found.ids, [[1, 0]])
    np.testing.assert_allclose(found.coefficients, [[2 / 3, 0.5]])


def test_atoms_of_norms_far_apart_are_still_told_exactly():
    values = table(2020, 64)
    values[::7] *= 1e3
    values[3] *= 1e6
    atoms, targets = values[:2000], values[2000:]
    ids, _ = batch_omp(targets.double(), atoms.double(), 12)
    np.testing.assert_array_equal(Dictionary(atoms).pursue(targets, 12).ids, ids)


def test_more_atoms_than_dimensions_explain_all_without_blowing_up():
    values = table(600, 32)
    found = Dictionary(values[:550]).pursue(values[550:], 40)
    assert found.ids.shape[1] == 32
    assert found.residual.max() < 1e-6
    assert np.abs(found.coefficients).sum(axis=1).max() < 50


def test_a_target_that_is_an_atom_stops_after_it():
    values = table(50, 16)
    found = Dictionary(values).pursue(values[7:8] * 2, 8)
    np.testing.assert_array_equal(found.ids, [[7] + [-1] * 7])
    np.testing.assert_allclose(found.coefficients[0, 0], 2)


def test_a_target_of_zeros_takes_no_atom():
    found = Dictionary(table(20, 8)).pursue(torch.zeros(1, 8), 4)
    assert (found.ids == -1).all()
    assert found.residual == 0


def test_normalized_atoms_compete_by_direction():
    atoms = torch.tensor([[10.0, 10.0], [0.1, 0.0]])
    target = torch.tensor([[1.0, 0.2]])
    assert Dictionary(atoms).pursue(target, 1).ids == 0
    found = Dictionary(atoms, normalize=True).pursue(target, 1)
    assert found.ids == 1
    np.testing.assert_allclose(found.coefficients, 10.0, rtol=1e-6)


def test_rows_are_the_same_combination_of_the_bases_rows():
    donor, base = table(300, 24), table(300, 40, seed=1)
    made = rows(task(base, donor, 250), "omp", k=6, center=False)
    expected = torch.einsum("nk,nkd->nd", made.weights, base[made.ids])
    torch.testing.assert_close(made.rows, expected)
    torch.testing.assert_close(
        torch.einsum("nk,nkd->nd", made.weights, donor[made.ids]) - donor[250:],
        torch.zeros(50, 24),
        atol=float((made.residual * donor[250:].norm(dim=1)).max()) * 1.001,
        rtol=0,
    )


def test_rows_that_are_sparse_combinations_are_found():
    donor, base = table(400, 64), table(400, 32, seed=1)
    donor[300:] = 2 * donor[:100] - donor[100:200]
    expected = 2 * base[:100] - base[100:200]
    made = rows(task(base, donor, 300), "omp", center=False)
    torch.testing.assert_close(made.rows, expected, rtol=1e-4, atol=1e-4)


def test_centred_rows_are_found_through_a_shift_of_either_side():
    donor, base = table(400, 64), table(400, 32, seed=1)
    plain = rows(task(base, donor, 300), "omp", k=8)
    moved = rows(task(base + 5, donor - 3, 300), "omp", k=8)
    torch.testing.assert_close(moved.rows, plain.rows + 5, rtol=1e-4, atol=1e-4)


def test_a_turned_donor_gives_the_same_rows():
    base = table(400, 48)
    turn = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(3)))[0]
    own, turned = task(base[:350], base, 350), task(base[:350], base @ turn, 350)
    torch.testing.assert_close(
        rows(turned, "omp", k=12).rows, rows(own, "omp", k=12).rows, rtol=1e-4, atol=1e-4
    )


def test_rows_of_zeros_are_no_atoms_and_become_the_mean():
    donor, base = table(60, 16), table(60, 16, seed=1)
    donor[5], donor[55] = 0, 0
    made = rows(task(base, donor, 50), "omp", k=4, center=False)
    assert made.rows.isfinite().all()
    assert not (made.ids == 5).any()
    assert (made.ids[5] == -1).all()
    known = torch.arange(50) != 5
    torch.testing.assert_close(made.rows[5], base[:50][known].mean(0))


def test_combinations_that_cancel_are_told():
    said = []
    donor, base = table(40, 8), table(40, 8, seed=1)
    donor[1] = donor[0] * 1.0001
    donor[1, 3] += 1e-3
    donor[39] = (donor[0] - donor[1]) * 1e5
    rows(task(base, donor, 30, tell=said.append), "omp", k=8, center=False)
    assert any("smaller k" in line for line in said)
