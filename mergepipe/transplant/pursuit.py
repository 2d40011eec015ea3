"""Orthogonal matching pursuit of many targets over one dictionary, exact on any machine.

Pati, Rezaiifar and Krishnaprasad (Asilomar 1993); Gram form: Rubinstein, Zibulevsky and Elad
(2008). For each target x, k times: take the atom of the largest |⟨r, a_i⟩|, then set r to what is
left of x after least squares over all atoms taken. Atoms are not normalised.

Supports and coefficients are those of fp64 on the fp32 input: they depend on neither block,
threads nor memory. Of equal correlations the lowest index wins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergepipe.kernels import pursuit as kernels
from mergepipe.kernels.pursuit import Doubles, Floats, Ints, Search
from mergepipe.transplant.pursuit_dense import pursue_densely

__all__ = ["Dictionary", "Found", "default_gram_bytes"]

_BLOCK = 256  # targets that take their steps together
_PART = 16  # targets of a block that a thread takes at a time
_TOGETHER = 64  # targets that wait before their estimates are computed anew
_SOLVED = 32  # targets whose atoms are held in fp64 at once


@dataclass(frozen=True, slots=True)
class Found:
    """What a pursuit gives: arrays with a row for each target.

    `ids` [n, k] (-1 where it stopped early), `coefficients` [n, k] fp64, `residual` [n] fp64: what
    is left, over the norm of the target (0 for a target of zeros).
    """

    ids: Ints
    coefficients: Doubles
    residual: Doubles


class Dictionary:
    """Atoms [n, columns] in fp32, and as many rows of their Gram matrix as memory allows.

    A Gram row takes a byte for each atom. Rows are made when they are first needed, and the oldest
    make room. `gram_bytes`: how much they may take, half of the machine's memory by default.
    `normalize`: choose atoms by direction alone. Atoms on another device than the CPU are pursued
    there, without Gram rows.
    """

    def __init__(
        self,
        atoms: Tensor,
        *,
        normalize: bool = False,
        threads: int = 1,
        gram_bytes: int | None = None,
    ) -> None:
        self.norms = torch.ones(len(atoms), dtype=torch.float64)
        if normalize:
            self.norms = atoms.double().norm(dim=1).cpu()
            self.norms = torch.where(self.norms > 0, self.norms, 1)
            atoms = (atoms.double() / self.norms.to(atoms.device)[:, None]).float()
        self.atoms = atoms.contiguous()
        self.threads = threads
        if self.atoms.device.type == "cpu":
            self._make_room(gram_bytes or default_gram_bytes(len(atoms)))

    def _make_room(self, gram_bytes: int) -> None:
        count = max(len(self.atoms), 1)
        self._room = min(count, max(gram_bytes // count, 64))
        self._rows: NDArray[np.int8] = np.empty((self._room, count), np.int8)
        self._scales: Doubles = np.zeros(self._room)
        self._slots: Ints = np.full(count, -1, np.int64)
        self._owners: Ints = np.full(self._room, -1, np.int64)
        self._used: Ints = np.zeros(self._room, np.int64)
        self._now = 0
        self.rows_made = 0
        squares = kernels.squares(self._numbers)
        self._longest = float(np.sqrt(squares.max(initial=0.0)))

    @property
    def _numbers(self) -> Floats:
        numbers: Floats = self.atoms.numpy()
        return numbers

    def pursue(self, targets: Tensor, k: int, without: Ints | None = None) -> Found:
        """Find up to `k` atoms for each target [n, columns] in fp32, none of those in `without`."""
        k = min(k, *self.atoms.shape)
        on_cpu = self.atoms.device.type == "cpu"
        size = max(1, min(_BLOCK, self._room // max(k, 1))) if on_cpu else _BLOCK
        find = self._block if on_cpu else self._dense
        left_out = np.empty(0, np.int64) if without is None else without
        parts = [find(targets[at : at + size], k, left_out) for at in range(0, len(targets), size)]
        parts = parts or [Found(np.empty((0, k), np.int64), np.empty((0, k)), np.empty(0))]
        ids = np.concatenate([part.ids for part in parts])
        coefficients = np.concatenate([part.coefficients for part in parts])
        residual = np.concatenate([part.residual for part in parts])
        return Found(ids, coefficients / self.norms.numpy()[ids], residual)

    def shortened(self, targets: Tensor, found: Found, k: int) -> Found:
        """Give what a pursuit of these targets with fewer atoms finds: its first `k`."""
        ids = torch.from_numpy(found.ids[:, :k])
        parts, left = [], []
        blocks = torch.split(ids, _SOLVED), torch.split(targets.double(), _SOLVED)
        for some, wide in zip(*blocks, strict=True):
            there = (some >= 0).to(wide.device)
            atoms = self.atoms[some.clamp(min=0)].double() * there[:, :, None]
            gram = atoms @ atoms.mT + torch.diag_embed((~there).double())
            solved = torch.linalg.solve(gram, atoms @ wide[:, :, None])
            norms = wide.norm(dim=1)
            rest = (wide - (atoms.mT @ solved)[:, :, 0]).norm(dim=1)
            left.append(torch.where(norms > 0, rest / norms, 0).cpu())
            parts.append(solved[:, :, 0].cpu())
        coefficients = torch.cat(parts).numpy() / self.norms.numpy()[found.ids[:, :k]]
        return Found(found.ids[:, :k], coefficients, torch.cat(left).numpy())

    def _dense(self, targets: Tensor, k: int, without: Ints) -> Found:
        ids, coefficients, residual = pursue_densely(self.atoms, targets, k, without)
        norms = targets.double().norm(dim=1)
        left = torch.where(norms > 0, residual.norm(dim=1) / norms, 0)
        return Found(ids.cpu().numpy(), coefficients.cpu().numpy(), left.cpu().numpy())

    def _block(self, targets: Tensor, k: int, without: Ints) -> Found:
        search = _start(targets, self.atoms, k)
        self._now += 1
        with ThreadPoolExecutor(self.threads) as pool:

            def each(do: Callable[[int, int], None]) -> None:
                list(pool.map(lambda part: do(*part), _parts(len(targets))))

            while search.active.any():
                # One product reads all atoms: targets wait until it serves many.
                waiting = search.active & search.stale
                if waiting.sum() >= _TOGETHER or waiting.sum() == search.active.sum():
                    self._refresh(search, without)
                    each(lambda a, b: kernels.begin(search, a, b, self._longest))
                going = ~search.stale
                each(lambda a, b: kernels.extend(search, a, b, self._numbers))
                going &= search.active
                self._need(np.unique(search.ids[going, search.counts[going] - 1]))
                each(lambda a, b: self._update(search, a, b))
        return _found(search)

    def _refresh(self, search: Search, without: Ints) -> None:
        """Compute stale estimates anew from the residuals."""
        stale = np.flatnonzero(search.stale & search.active)
        residuals = torch.from_numpy(search.residuals[stale].astype(np.float32))
        fresh = (residuals @ self.atoms.T).numpy()
        fresh[:, without] = np.nan
        search.estimates[stale] = fresh

    def _update(self, search: Search, first: int, last: int) -> None:
        kernels.update(search, first, last, self._rows, self._scales, self._slots, self._longest)

    def _need(self, ids: Ints) -> None:
        """Make sure that the Gram rows of these atoms are there, and stay for this block."""
        there = self._slots[ids]
        self._used[there[there >= 0]] = self._now
        fresh = ids[there < 0]
        if not fresh.size:
            return
        oldest = np.argsort(self._used, kind="stable")[: fresh.size]
        gone = self._owners[oldest]
        self._slots[gone[gone >= 0]] = -1
        self._slots[fresh], self._owners[oldest] = oldest, fresh
        self._used[oldest] = self._now
        self.rows_made += fresh.size
        products = (self.atoms[fresh] @ self.atoms.T).numpy()
        kernels.quantise(products, fresh, self._rows, oldest, self._scales)


def default_gram_bytes(atoms: int) -> int:
    """Give the bytes that Gram rows take at most: all of them, or half of the machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(atoms**2, memory // 2)


def _parts(count: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, _PART):
        yield first, min(first + _PART, count)


def _start(targets: Tensor, atoms: Tensor, k: int) -> Search:
    count, numbers = len(targets), targets.contiguous().numpy()
    stretches = -(-len(atoms) // kernels.STRETCH)
    return Search(
        targets=numbers,
        residuals=numbers.astype(np.float64),
        estimates=np.empty((count, len(atoms)), np.float32),
        peaks=np.empty((count, stretches), np.float32),
        errors=np.zeros(count),
        rounding=np.zeros(count),
        counts=np.zeros(count, np.int64),
        active=np.array(numbers.any(axis=1) & (k > 0), np.bool_),
        ids=np.full((count, k), -1, np.int64),
        factors=np.zeros((count, k, k)),
        forward=np.zeros((count, k)),
        coefficients=np.zeros((count, k)),
        applied=np.zeros((count, k)),
        anchored=np.zeros((count, k)),
        stale=np.ones(count, np.bool_),
        largest=np.zeros(count),
    )


def _found(search: Search) -> Found:
    norms = np.sqrt(kernels.squares(search.targets))
    left = np.sqrt((search.residuals**2).sum(axis=1))
    residual = np.divide(left, norms, out=np.zeros_like(left), where=norms > 0)
    return Found(search.ids, search.coefficients, residual)
