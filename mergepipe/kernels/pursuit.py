"""One step of orthogonal matching pursuit for many targets, each on its own.

Correlations with all atoms are kept as fp32 *estimates*, updated by Gram rows in eight bits, with
a bound of how wrong they can be. They only say which atoms could be the best; among those, what
counts is computed in fp64 in a fixed order. So supports are those of fp64, whatever the estimates.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.kernels.compiling import kernel

__all__ = ["STRETCH", "Search", "begin", "combine", "extend", "quantise", "squares", "update"]

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_LANES = 32
STRETCH = 256  # atoms of which the largest |estimate| is kept
_TILE = 4096  # atoms whose estimates stay in the first cache while Gram rows are subtracted
_LAZY = 0.1  # updates left out may add up to this part of the last correlation
_LOOSE = 0.2  # errors above this part of the last correlation: too many atoms could be the best
_DEAR = 3  # a product in a matrix product costs so many times less than one of a Gram row
_DEPENDENT = 1e-12  # squared distance of an atom from the span, over its squared norm
_EXPLAINED = 1e-6  # residual, over the norm of the target
_HALF_ULP = 2.0**-24


class Search(NamedTuple):
    """What is known of each target of a block: all arrays have a row for each."""

    targets: Floats  # [targets, columns]
    residuals: Doubles  # [targets, columns]
    estimates: Floats  # [targets, atoms], NaN at atoms that are taken
    peaks: Floats  # [targets, stretches]: the largest |estimate| of each
    errors: Doubles  # [targets]: how wrong an estimate can be
    rounding: Doubles  # [targets]: the part of it that came of changing them in fp32
    counts: Ints  # [targets]: atoms taken
    active: NDArray[np.bool_]  # [targets]
    ids: Ints  # [targets, k]
    factors: Doubles  # [targets, k, k]: Cholesky of the Gram matrix of the atoms taken
    forward: Doubles  # [targets, k]: the targets' products, solved by the factor
    coefficients: Doubles  # [targets, k]
    applied: Doubles  # [targets, k]: the coefficients that the estimates stand for
    anchored: Doubles  # [targets, k]: those at which they were last computed anew
    stale: NDArray[np.bool_]  # [targets]: estimates to be computed anew
    largest: Doubles  # [targets]: the last correlation


@kernel
def _dot(x: Doubles, y: Floats, lanes: Doubles) -> float:  # pragma: no cover
    lanes[:] = 0.0
    whole = x.size // _LANES * _LANES
    for first in range(0, whole, _LANES):
        a, b = x[first : first + _LANES], y[first : first + _LANES]
        for j in range(_LANES):
            lanes[j] += a[j] * np.float64(b[j])
    for j in range(x.size - whole):
        lanes[j] += x[whole + j] * np.float64(y[whole + j])
    total: float = lanes.sum()
    return total


@kernel
def squares(rows: Floats) -> Doubles:  # pragma: no cover
    """Σ x² of each row in fp64."""
    out, lanes = np.empty(rows.shape[0]), np.empty(_LANES)
    wide = np.empty(rows.shape[1])
    for i in range(rows.shape[0]):
        wide[:] = rows[i]
        out[i] = _dot(wide, rows[i], lanes)
    return out


@kernel
def quantise(
    products: Floats, own: Ints, rows: NDArray[np.int8], slots: Ints, scales: Doubles
) -> None:  # pragma: no cover
    """Keep each row of Gram products as `rows[slot]` · `scales[slot]`, without that of itself."""
    for i in range(products.shape[0]):
        values, kept = products[i], rows[slots[i]]
        values[own[i]] = 0
        lanes = np.zeros(_LANES, np.float32)
        _peak(values, lanes)
        scale = max(np.float64(lanes.max()), 1e-30) / 127
        scales[slots[i]] = scale
        inverse = np.float32(1 / scale)
        for j in range(values.size):
            kept[j] = np.int8(np.rint(values[j] * inverse))


@kernel
def _peak(values: Floats, lanes: Floats) -> None:  # pragma: no cover
    """Raise the lanes to the largest |value|; NaN counts for nothing."""
    whole = values.size // _LANES * _LANES
    for first in range(0, whole, _LANES):
        part = values[first : first + _LANES]
        for j in range(_LANES):
            value = abs(part[j])  # NaN must lose: max would let it win
            lanes[j] = value if value > lanes[j] else lanes[j]  # noqa: FURB136
    for j in range(values.size - whole):
        value = abs(values[whole + j])
        lanes[j] = value if value > lanes[j] else lanes[j]  # noqa: FURB136


@kernel
def begin(search: Search, first: int, last: int, longest: float) -> None:  # pragma: no cover
    """Take stale estimates as products of residuals and atoms of norms up to `longest`."""
    lanes = np.empty(_LANES, np.float32)
    for i in range(first, last):
        if not (search.stale[i] and search.active[i]):
            continue
        norm = np.sqrt((search.residuals[i] ** 2).sum())
        search.errors[i] = norm * longest * (search.targets.shape[1] + 2) * _HALF_ULP
        search.rounding[i] = search.errors[i]
        search.applied[i], search.anchored[i] = search.coefficients[i], search.coefficients[i]
        for taken in range(search.counts[i]):
            search.estimates[i, search.ids[i, taken]] = np.nan
        _find_peaks(search.estimates[i], search.peaks[i], lanes)
        search.stale[i] = False


@kernel
def _find_peaks(estimates: Floats, peaks: Floats, lanes: Floats) -> None:  # pragma: no cover
    for at in range(peaks.size):
        lanes[:] = 0
        _peak(estimates[at * STRETCH : (at + 1) * STRETCH], lanes)
        peaks[at] = lanes.max()


@kernel
def _best(
    estimates: Floats, peaks: Floats, error: float, atoms: Floats, residual: Doubles, lanes: Doubles
) -> tuple[int, float]:  # pragma: no cover
    """Find the atom of the largest |correlation|, the lowest of equals, and that correlation."""
    # The correlation of the largest estimate is known first: few others can still be as large.
    likely = _likeliest(estimates, peaks)
    if likely < 0:
        return -1, 0.0
    best, largest = likely, abs(_dot(residual, atoms[likely], lanes))
    floor = np.float32((largest - error) * (1 - 1e-6))
    for at in range(peaks.size):
        if peaks[at] < floor:
            continue
        for j in range(at * STRETCH, min((at + 1) * STRETCH, estimates.size)):
            if abs(estimates[j]) >= floor:
                value = abs(_dot(residual, atoms[j], lanes))
                if value > largest or (value == largest and j < best):
                    best, largest = j, value
                    floor = np.float32((largest - error) * (1 - 1e-6))
    if largest == 0:
        return -1, 0.0
    return best, largest


@kernel
def _likeliest(estimates: Floats, peaks: Floats) -> int:  # pragma: no cover
    """Find the first of the largest |estimate|; -1 where all atoms are taken."""
    at = np.argmax(peaks)
    for j in range(at * STRETCH, min((at + 1) * STRETCH, estimates.size)):
        if abs(estimates[j]) >= peaks[at]:
            found: int = j
            return found
    return -1


@kernel
def extend(search: Search, first: int, last: int, atoms: Floats) -> None:  # pragma: no cover
    """Give every active target its next atom, and solve for the coefficients of all it has.

    Those whose estimates are stale wait; those that have all their atoms, or need no more, end.
    """
    lanes = np.empty(_LANES)
    wide = np.empty(atoms.shape[1])
    for i in range(first, last):
        if search.stale[i] or not search.active[i]:
            continue
        best, largest = _best(
            search.estimates[i],
            search.peaks[i],
            search.errors[i],
            atoms,
            search.residuals[i],
            lanes,
        )
        if best < 0 or not _factor(search, i, best, atoms, wide, lanes):
            search.active[i] = False
            continue
        search.largest[i] = largest
        search.estimates[i, best] = np.nan
        _solve(search, i)
        before = (search.targets[i].astype(np.float64) ** 2).sum()
        _leave(search, i, atoms)
        explained = (search.residuals[i] ** 2).sum() <= _EXPLAINED**2 * before
        if explained or search.counts[i] == search.ids.shape[1]:
            search.active[i] = False


@kernel
def _factor(
    search: Search, i: int, best: int, atoms: Floats, wide: Doubles, lanes: Doubles
) -> bool:  # pragma: no cover
    """Append a row to the Cholesky factor; False if the atom depends on those taken."""
    count, factor = search.counts[i], search.factors[i]
    wide[:] = atoms[best]
    square = _dot(wide, atoms[best], lanes)
    left = square
    for row in range(count):
        value = _dot(wide, atoms[search.ids[i, row]], lanes)
        for column in range(row):
            value -= factor[row, column] * factor[count, column]
        factor[count, row] = value / factor[row, row]
        left -= factor[count, row] ** 2
    if left <= _DEPENDENT * square:
        return False
    factor[count, count] = np.sqrt(left)
    value = _dot(wide, search.targets[i], lanes)
    for column in range(count):
        value -= factor[count, column] * search.forward[i, column]
    search.forward[i, count] = value / factor[count, count]
    search.ids[i, count] = best
    search.counts[i] = count + 1
    return True


@kernel
def _solve(search: Search, i: int) -> None:  # pragma: no cover
    factor, out = search.factors[i], search.coefficients[i]
    for row in range(search.counts[i] - 1, -1, -1):
        value = search.forward[i, row]
        for later in range(row + 1, search.counts[i]):
            value -= factor[later, row] * out[later]
        out[row] = value / factor[row, row]


@kernel
def _leave(search: Search, i: int, atoms: Floats) -> None:  # pragma: no cover
    """Set the residual to the target less what its atoms make of it."""
    residual = search.residuals[i]
    residual[:] = search.targets[i]
    for taken in range(search.counts[i]):
        coefficient, atom = search.coefficients[i, taken], atoms[search.ids[i, taken]]
        for j in range(residual.size):
            residual[j] -= coefficient * np.float64(atom[j])


@kernel
def update(
    search: Search,
    first: int,
    last: int,
    rows: NDArray[np.int8],
    scales: Doubles,
    slots: Ints,
    longest: float,
) -> None:  # pragma: no cover
    """Bring the estimates near what the new coefficients make of them.

    `slots` says where an atom's Gram row is, `longest` bounds the atoms' norms.
    """
    lanes = np.empty(_LANES, np.float32)
    for i in range(first, last):
        if search.active[i] and not search.stale[i]:
            chosen, weights = _due(search, i, scales, slots, longest)
            if search.stale[i]:
                continue
            for at in range(0, search.estimates.shape[1], _TILE):
                part = search.estimates[i, at : at + _TILE]
                _subtract(part, rows, at, chosen, weights)
                stretches = search.peaks[i, at // STRETCH : (at + _TILE) // STRETCH]
                _find_peaks(part, stretches, lanes)


@kernel
def _due(
    search: Search, i: int, scales: Doubles, slots: Ints, longest: float
) -> tuple[Ints, Floats]:  # pragma: no cover
    """Choose the Gram rows that must be subtracted now, and say how wrong estimates then are."""
    count = search.counts[i]
    found = slots[search.ids[i, :count]]
    reach = scales[found] * 127
    change = search.coefficients[i, :count] - search.applied[i, :count]
    order = np.argsort(np.abs(change) * reach)
    lazy, left = 0.0, 0
    for at in order:
        more = abs(change[at]) * reach[at]
        if lazy + more > _LAZY * search.largest[i]:
            break
        lazy, left = lazy + more, left + 1
    chosen = order[left:]
    search.applied[i, chosen] = search.coefficients[i, chosen]
    spent = (np.abs(change[chosen]) * reach[chosen]).sum()
    size = np.float64(search.peaks[i].max()) + spent
    search.rounding[i] += 2 * (chosen.size + 4) * size * _HALF_ULP
    # A product of fp32 rows is off by columns · 2^-24 of the norms at most, in whatever order.
    inexact = longest**2 * search.targets.shape[1] * _HALF_ULP
    moved = np.abs(search.applied[i, :count] - search.anchored[i, :count])
    stored = (moved * (0.501 * scales[found] + inexact)).sum()
    search.errors[i] = lazy + stored + search.rounding[i]
    loose = search.errors[i] > _LOOSE * search.largest[i]
    search.stale[i] = loose or chosen.size * _DEAR > search.targets.shape[1]
    return found[chosen], (change[chosen] * scales[found[chosen]]).astype(np.float32)


@kernel
def _subtract(
    part: Floats, rows: NDArray[np.int8], at: int, chosen: Ints, weights: Floats
) -> None:  # pragma: no cover
    end = at + part.size
    whole = chosen.size // 4 * 4
    for k in range(0, whole, 4):
        a, b = rows[chosen[k], at:end], rows[chosen[k + 1], at:end]
        c, d = rows[chosen[k + 2], at:end], rows[chosen[k + 3], at:end]
        u, v, w, x = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for j in range(part.size):
            part[j] -= (
                u * np.float32(a[j])
                + v * np.float32(b[j])
                + w * np.float32(c[j])
                + x * np.float32(d[j])
            )
    for k in range(whole, chosen.size):
        row, weight = rows[chosen[k], at:end], weights[k]
        for j in range(part.size):
            part[j] -= weight * np.float32(row[j])


@kernel
def combine(rows: Floats, ids: Ints, weights: Doubles, out: Doubles) -> None:  # pragma: no cover
    """Add Σ weights · rows of each line of `ids` to `out`, ids below 0 left out."""
    for i in range(ids.shape[0]):
        total = out[i]
        for k in range(ids.shape[1]):
            if ids[i, k] >= 0:
                row = rows[ids[i, k]]
                for j in range(total.size):
                    total[j] += weights[i, k] * np.float64(row[j])
