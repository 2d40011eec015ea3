"""Rows of a transplanted table, written as they are made.

Tokens that both models have keep the base's rows bit for bit. What a method makes is asked for in
blocks; so little is in memory at once, and what blocks there are changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mergepipe.checkpoint import read_values, torch_dtype
from mergepipe.digest import digest_of
from mergepipe.errors import InputError, Problem, printable
from mergepipe.transplant.kinds import load_transplant
from mergepipe.transplant.planning import MadeTensor, Transplant
from mergepipe.transplant.report import TableReport, quantiles, worst_tokens
from mergepipe.transplant.segmenting import segmenter
from mergepipe.transplant.tables import StoredTable
from mergepipe.transplant.task import Approximation, Ids, Task

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Part", "Parts", "Room", "make_tensor", "task_of"]

_BLOCK = 512  # missing tokens that a method is asked for at once
_ELEMENTS = 1 << 21  # of rows that are held at once
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, slots=True)
class Room:
    """What making a table may use; tables of at most `most_bytes` as fp32 are kept in memory."""

    device: torch.device
    threads: int = 1
    most_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A block of rows that a method made: the digest of their bytes, and their residuals."""

    start: int  # in `task.missing`
    digest: str
    residuals: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a table an earlier run made, by `start`; `add` is given what this one makes."""

    done: Mapping[int, Part] = field(default_factory=dict)
    add: Callable[[Part], None] = lambda _: None


def make_tensor(
    transplant: Transplant,
    made: MadeTensor,
    room: Room,
    tell: Callable[[str], None] = lambda _: None,
    parts: Parts | None = None,
) -> TableReport:
    """Write one tensor to its file; give what is to be known of it.

    Rows of `parts` that are in the file as they were written are not made again.

    Raises
    ------
    InputError
        if a row is not finite in the tensor's dtype, or the method cannot be used.
    OSError
        if the file cannot be written.

    """
    notes: list[str] = []

    def told(message: str) -> None:
        notes.append(message)
        tell(f"{made.name}: {message}")

    parts = Parts() if parts is None else parts
    fresh = 0 if parts.done else os.O_TRUNC
    file = os.open(made.stored.file, os.O_RDWR | os.O_CREAT | fresh | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(file, made.stored.nbytes)
        if made.side is None:
            report = _make_bias(transplant, made, file)
        else:
            task = task_of(transplant, made, room, told)
            report = _Maker(transplant, made, task, file, parts, tell).make(notes)
        os.fsync(file)
    finally:
        os.close(file)
    return report


def task_of(
    transplant: Transplant, made: MadeTensor, room: Room, tell: Callable[[str], None]
) -> Task:
    """Give what the method is to do for one table."""
    assert made.side is not None, "a bias is no table"
    found, donor, base = transplant.match, transplant.donor.model, transplant.base
    theirs = None
    if donor is not None and made.donor is not None:
        theirs = StoredTable(donor, made.donor, room.device, room.most_bytes)
    other = next((x for x in transplant.tensors if x.side not in (made.side, None)), None)
    # Beyond its rows the donor has nothing to show of a token.
    most = found.donor.rows if theirs is None else theirs.rows
    same = [n for n, how in found.how.items() if how in ("exact", "byte") and n < most]
    anchors = [(n, found.ids[n]) for n in same if found.donor.tokens[n].kind != "special"]
    return Task(
        side=made.side,
        match=found,
        base=StoredTable(base, made.name, room.device, room.most_bytes),
        donor=theirs,
        anchors=np.array(anchors, np.int64).reshape(-1, 2),
        missing=_ordinary_missing(transplant),
        seed=transplant.choice.seed,
        device=room.device,
        segment=segmenter(found.base),
        threads=room.threads,
        other=None if other is None else StoredTable(base, other.name, room.device),
        checkpoint=base,
        tell=tell,
    )


def _ordinary_missing(transplant: Transplant) -> Ids:
    tokens = transplant.match.donor.tokens
    return np.array(
        [n for n in transplant.match.missing if tokens[n].kind != "special"], dtype=np.int64
    )


@dataclass
class _Maker:
    """Writes one table; keeps what its report and the mean row need."""

    transplant: Transplant
    made: MadeTensor
    task: Task
    file: int
    parts: Parts
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self.total = torch.zeros(self.made.columns, dtype=torch.float64)
        self.norms = np.full(self.transplant.rows, np.nan)
        self.block = max(1, _ELEMENTS // self.made.columns)

    @cached_property
    def dtype(self) -> torch.dtype:
        return torch_dtype(self.made.stored.dtype)

    def make(self, notes: list[str]) -> TableReport:
        """Write all rows: copied ones, what the method makes, special ones, those of no token."""
        found = self.transplant.match
        ids = np.fromiter(found.ids, np.int64, len(found.ids))
        self._copy(ids, np.fromiter(found.ids.values(), np.int64, len(ids)))
        residuals = self._approximate()
        special = np.array(
            [n for n in found.missing if found.donor.tokens[n].kind == "special"], np.int64
        )
        self._fill(special, self._special_row())
        owned = ~np.isnan(self.norms)
        unowned = np.flatnonzero(~owned)
        mean = self.total / max(1, int(owned.sum()))
        zero = self.transplant.choice.options.junk == "zero"
        self._fill(unowned, mean * 0 if zero else mean)
        return self._report(ids, special, unowned, residuals, notes)

    def _copy(self, ids: Ids, sources: Ids) -> None:
        table = self.task.base
        assert isinstance(table, StoredTable), "tables of checkpoints"
        for start in range(0, len(ids), self.block):
            part = slice(start, start + self.block)
            self._write(ids[part], table.stored(sources[part]))

    def _approximate(self) -> NDArray[np.float64] | None:
        """Have the method make rows; how much of each donor row they lack, where it says so."""
        missing = self.task.missing
        if not len(missing):
            return None
        method = load_transplant(self.transplant.choice.method)
        fitted = method.fit(self.task, self.transplant.choice.parameters)
        residuals: list[NDArray[np.float64]] = []
        progress = _Progress(self.made.name, len(missing), self.tell)
        if self.parts.done:
            count = min(len(self.parts.done) * _BLOCK, len(missing))
            self.tell(f"{self.made.name}: {count:,} of {len(missing):,} rows were already made")
        for start in range(0, len(missing), _BLOCK):
            positions = np.arange(start, min(start + _BLOCK, len(missing)))
            part = self._kept(start, missing[positions])
            if part is None:
                part = self._make_part(fitted(positions), start, missing[positions])
                progress(positions.size)
            else:
                progress.skip(positions.size)
            if part.residuals is not None:
                residuals.append(np.array(part.residuals))
        return np.concatenate(residuals) if residuals else None

    def _make_part(self, found: Approximation, start: int, ids: Ids) -> Part:
        digest = digest_of(self._write(ids, found.rows.cpu()))
        left = None if found.residual is None else tuple(found.residual.double().tolist())
        part = Part(start, digest, left)
        if start + _BLOCK < len(self.task.missing):  # after the last one the table is whole
            self.parts.add(part)
        return part

    def _kept(self, start: int, ids: Ids) -> Part | None:
        """Give a part that an earlier run made, if its rows are in the file as it wrote them."""
        part = self.parts.done.get(start)
        if part is None:
            return None
        size = self.made.columns * self.dtype.itemsize
        data = b"".join(os.pread(self.file, n * size, at * size) for at, n in _stretches(ids))
        if digest_of(data) != part.digest:
            return None
        rows = torch.frombuffer(bytearray(data), dtype=self.dtype)
        self._count(ids, rows.reshape(-1, self.made.columns))
        return part

    def _special_row(self) -> Tensor:
        """Give the row of special tokens that the base lacks, in fp64."""
        found, rows = self.transplant.match, self.task.base.rows
        choice = self.transplant.choice.options.special_fallback
        pad = found.base.roles.get("pad")
        tokens = [one for one in found.base.tokens.values() if one.id < rows]
        special = [one.id for one in tokens if one.kind == "special" and one.id != pad]
        chosen = special if choice == "special" and special else [one.id for one in tokens]
        if choice == "zero" or not chosen:
            return torch.zeros(self.made.columns, dtype=torch.float64)
        total = torch.zeros(self.made.columns, dtype=torch.float64)
        for start in range(0, len(chosen), self.block):
            block = np.array(chosen[start : start + self.block], np.int64)
            total += self.task.base[block].cpu().double().sum(0)
        return total / len(chosen)

    def _fill(self, ids: Ids, row: Tensor) -> None:
        for start in range(0, len(ids), self.block):
            some = ids[start : start + self.block]
            self._write(some, row.expand(len(some), -1))

    def _write(self, ids: Ids, rows: Tensor) -> bytes:
        """Write rows to their places, and give their bytes; `ids` ascend."""
        narrow = rows.to(self.dtype).contiguous()
        if not bool(narrow.isfinite().all()):
            self._refuse(ids[int((~narrow.isfinite().all(1)).nonzero()[0, 0])])
        self._count(ids, narrow)
        data = narrow.view(torch.uint8).numpy().tobytes()
        size, done = self.made.columns * self.dtype.itemsize, 0
        for first, count in _stretches(ids):
            _write_all(self.file, data[done : done + count * size], first * size)
            done += count * size
        return data

    def _count(self, ids: Ids, rows: Tensor) -> None:
        wide = rows.double()
        self.total += wide.sum(0)
        self.norms[ids] = wide.norm(dim=1).numpy()

    def _refuse(self, number: int) -> None:
        token = self.transplant.match.donor.tokens.get(number)
        shown = "padding" if token is None else printable(token.text, 40)
        what = f"the row of token {number} ({shown}) is not finite in {self.made.stored.dtype}"
        fix = "use another method, or other parameters; or look at the model's own rows"
        raise InputError(Problem(f"{self.transplant.name}: {self.made.name}", what, fix))

    def _report(
        self,
        copied: Ids,
        special: Ids,
        unowned: Ids,
        residuals: NDArray[np.float64] | None,
        notes: list[str],
    ) -> TableReport:
        found, missing = self.transplant.match, self.task.missing
        counts = {how: count for how, count in found.counts.items() if how in found.how.values()}
        made = self.norms[missing]
        return TableReport(
            tensor=self.made.name,
            side=self.made.side or "bias",
            rows={
                **counts,
                "approximated": len(missing),
                "special_fallback": len(special),
                "junk": len(unowned),
            },
            residuals={} if residuals is None else quantiles(residuals),
            norms={
                "base": quantiles(self._base_norms()),
                "copied": quantiles(self.norms[copied]),
                "made": quantiles(made),
            },
            worst=worst_tokens([found.donor.tokens[int(n)] for n in missing], residuals, made),
            notes=tuple(notes),
        )

    def _base_norms(self) -> NDArray[np.float64]:
        tokens = self.transplant.match.base.tokens
        ids = np.array([n for n in tokens if n < self.task.base.rows], np.int64)
        # Filled in place: small arrays kept between large ones that are freed pin their memory.
        norms = np.empty(len(ids))
        for start in range(0, len(ids), self.block):
            part = slice(start, start + self.block)
            norms[part] = self.task.base[ids[part]].cpu().norm(dim=1).numpy()
        return norms


class _Progress:
    """Says every ten seconds how many rows are made."""

    def __init__(self, name: str, total: int, tell: Callable[[str], None]) -> None:
        self.name, self.total, self.tell = name, total, tell
        self.done = self.skipped = 0
        self.started = self.spoke = time.monotonic()

    def skip(self, count: int) -> None:
        self.skipped += count

    def __call__(self, count: int) -> None:
        self.done += count
        now, rest = time.monotonic(), self.total - self.done - self.skipped
        if now - self.spoke < _SECONDS_BETWEEN_LINES or not rest:
            return
        self.spoke = now
        left = rest / self.done * (now - self.started)
        made = self.done + self.skipped
        self.tell(f"{self.name}: {made:,} of {self.total:,} rows made, {left:.0f} s left")


def _stretches(ids: Ids) -> Iterator[tuple[int, int]]:
    """Give the first and the number of ids that follow one another."""
    cuts = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
    for start, stop in pairwise(cuts):
        yield int(ids[start]), stop - start


def _make_bias(transplant: Transplant, made: MadeTensor, file: int) -> TableReport:
    """Write one number a row: the base's, or the mean of those."""
    stored, found = transplant.base.tensors[made.name], transplant.match
    values = read_values(transplant.base, made.name, 0, stored.numel)
    ours = torch.tensor([n for n in found.base.tokens if n < stored.numel])
    result = torch.full((transplant.rows,), float(values[ours].double().mean()))
    pairs = torch.tensor(list(found.ids.items()), dtype=torch.int64).reshape(-1, 2)
    result[pairs[:, 0]] = values[pairs[:, 1]]
    data = result.to(torch_dtype(made.stored.dtype)).view(torch.uint8).numpy().tobytes()
    _write_all(file, data, 0)
    rows = {"copied": len(pairs), "mean": transplant.rows - len(pairs)}
    return TableReport(made.name, "bias", rows, {}, {}, ())


def _write_all(file: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(file, rest, offset)
        rest, offset = rest[done:], offset + done
