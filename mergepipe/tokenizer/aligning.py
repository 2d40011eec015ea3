"""Embeddings and heads of a model with the rows of another vocabulary, made as they are read.

No table is ever in memory: the rows of a run are read from where the model has them. A token that
the model lacks gets the row that the recipe names; else that of the only model that has it; else
the base's; else the mean over those that have it; else zeros. Rows that belong to no token are
the mean of the model's other rows.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from mergepipe.checkpoint import (
    DTYPES,
    Checkpoint,
    Stored,
    embedding_name,
    layer_of,
    read_range,
    read_values,
    torch_dtype,
)
from mergepipe.errors import Problems, printable
from mergepipe.tokenizer.outcome import with_rows
from mergepipe.tokenizer.uniting import Union

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AlignedRows", "align_checkpoints", "check_others", "vocabulary_tables"]

Ids: TypeAlias = NDArray[np.int64]

# What looks words up, scores them, or is added to their scores.
_TABLE = re.compile(
    r"((^|\.)(embed_tokens|wte|word_embeddings?|tok_embeddings|embed_in|shared|embeddings"
    r"|lm_head|embed_out|output_projection|shared_head\.head|vocab_projector"
    r"|lm_head\.decoder|predictions\.decoder)|^output)(\.weight)?$"
)
_BIAS = re.compile(
    r"(^|\.)(lm_head\.bias|embed_out\.bias|predictions\.bias|predictions\.decoder\.bias"
    r"|lm_head\.decoder\.bias|vocab_projector\.bias|final_logits_bias)$"
)
_WORDS = re.compile(r"embed|vocab|head|logit")
_PLACES = re.compile(r"position|token_type|norm")
_MATRIX = 2
_ZERO, _MEAN, _PADDING = -1, -2, -3
_NEAR = 16  # rows between two that are wanted which are read rather than skipped
_NEAR_UPDATED = 128  # in a model with an adapter, which is multiplied in blocks
_RUN = 1 << 18  # elements


@dataclass(frozen=True, slots=True)
class _Table:
    """A vocabulary-sized tensor of a model: [rows, columns], or one number a row."""

    checkpoint: Checkpoint
    name: str
    columns: int

    @property
    def is_updated(self) -> bool:
        """Whether an adapter changes it."""
        return self.name in self.checkpoint.low_rank

    def read(self, first: int, stop: int, dtype: str) -> Tensor:
        """Read a run of rows: [rows, columns]."""
        start, end = first * self.columns, stop * self.columns
        stored = self.checkpoint.tensors[self.name]
        if self.is_updated:
            values = read_values(self.checkpoint, self.name, start, end)
        else:
            values = read_range(stored, start, end)
        return values.to(torch_dtype(dtype)).reshape(-1, self.columns)


@dataclass(frozen=True)
class AlignedRows:
    """The values of one aligned tensor, flattened.

    `owner` says for each row whose table it is read from: an index into `tables`, or zeros, a mean
    over the tables, or padding; `ids` the row there. `several` are the rows of the means: row ->
    (table, id) of each.
    """

    tables: tuple[_Table, ...]
    owner: NDArray[np.int64]
    ids: Ids
    several: Mapping[int, tuple[tuple[int, int], ...]]
    columns: int
    dtype: str
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @cached_property
    def digest(self) -> str:
        """Digest of where every row comes from, but not of the values there."""
        hasher = blake3(repr([self.dtype, self.columns, sorted(self.several.items())]).encode())
        for one in self.tables:
            hasher.update(f"{one.checkpoint.label}/{one.name} ".encode())
        hasher.update(self.owner.tobytes())
        hasher.update(self.ids.tobytes())
        return str(hasher.hexdigest())

    @property
    def sources(self) -> tuple[Stored, ...]:
        """The tensors that rows are read from, those of adapters too."""
        found = []
        for one in self.tables:
            update = one.checkpoint.low_rank.get(one.name)
            found += [one.checkpoint.tensors[one.name], *((update.a, update.b) if update else ())]
        return tuple(found)

    def __getitem__(self, run: slice, /) -> Tensor:
        """Give a run of the flattened tensor, in its dtype."""
        first, stop = run.start // self.columns, -(-run.stop // self.columns)
        rows = self._rows(first, stop)
        if (self.owner[first:stop] == _PADDING).any():
            rows[self.owner[first:stop] == _PADDING] = self._mean_row()
        offset = first * self.columns
        return rows.reshape(-1)[run.start - offset : run.stop - offset]

    def _rows(self, first: int, stop: int) -> Tensor:
        """Make rows [rows, columns]; zeros for padding."""
        import torch

        owner, ids = self.owner[first:stop], self.ids[first:stop]
        owners = np.unique(owner)
        if len(owners) == 1 and owners[0] >= 0:
            return self._gather(int(owners[0]), ids)
        found = torch.zeros(stop - first, self.columns, dtype=torch_dtype(self.dtype))
        for one in owners[owners >= 0]:
            at = np.flatnonzero(owner == one)
            found[torch.from_numpy(at)] = self._gather(int(one), ids[at])
        for row in np.flatnonzero(owner == _MEAN).tolist():
            found[row] = self._average(first + row)
        return found

    def _gather(self, table: int, ids: Ids) -> Tensor:
        """Read rows, those that lie near each other at once, in the order of `ids`."""
        import torch

        source = self.tables[table]
        near = _NEAR_UPDATED if source.is_updated else _NEAR
        order = np.argsort(ids, kind="stable")
        wanted = ids[order]
        cuts = [0, *(np.flatnonzero(np.diff(wanted) > near) + 1), len(wanted)]
        if len(cuts) == 2 and np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids))):  # noqa: PLR2004
            return source.read(int(ids[0]), int(ids[-1]) + 1, self.dtype)
        found = torch.empty(len(ids), self.columns, dtype=torch_dtype(self.dtype))
        for start, stop in pairwise(cuts):
            low, high = int(wanted[start]), int(wanted[stop - 1]) + 1
            values = source.read(low, high, self.dtype)
            picked = torch.from_numpy(wanted[start:stop] - low)
            found[torch.from_numpy(order[start:stop])] = values[picked]
        return found

    def _average(self, row: int) -> Tensor:
        import torch

        rows = [self.tables[k].read(at, at + 1, "F32")[0] for k, at in self.several[row]]
        return torch.stack(rows).mean(dim=0)

    def _mean_row(self) -> Tensor:
        with self._lock:
            return self._mean

    @cached_property
    def _mean(self) -> Tensor:
        """Mean of the rows that tokens own, summed in fp64 run by run."""
        import torch

        step = max(1, _RUN // self.columns)
        total = torch.zeros(self.columns, dtype=torch.float64)
        owned = torch.from_numpy(self.owner != _PADDING)
        for first in range(0, len(self.owner), step):
            stop = min(first + step, len(self.owner))
            if owned[first:stop].any():
                total += self._rows(first, stop).double().sum(dim=0)
        return (total / max(int(owned.sum()), 1)).to(torch_dtype(self.dtype))


def vocabulary_tables(checkpoint: Checkpoint) -> dict[str, int]:
    """Give the tensors of a model that have a row for each word, and their columns."""
    embedding = embedding_name(checkpoint.tensors)
    if embedding is None:
        return {}
    rows = checkpoint.tensors[embedding].shape[0]
    found = {}
    for name, stored in checkpoint.tensors.items():
        if stored.is_float and _TABLE.search(name) and stored.shape[:1] == (rows,):
            if len(stored.shape) == _MATRIX:
                found[name] = stored.shape[1]
        elif stored.is_float and _BIAS.search(name) and stored.numel == rows:
            found[name] = 1
    return found


def align_checkpoints(
    checkpoints: Mapping[str, Checkpoint],
    union: Union,
    problems: Problems,
    *,
    taken: Collection[str] = (),
) -> dict[str, Checkpoint]:
    """Give the models with the rows of a united vocabulary; nothing is read but headers.

    Tensors with another dimension as long as the vocabulary are faults, but for those `taken`.
    """
    tables = {label: vocabulary_tables(one) for label, one in checkpoints.items()}
    names = dict.fromkeys(name for found in tables.values() for name in found)
    sources = {name: _sources(name, checkpoints, tables) for name in names}
    aligned = {}
    for label, checkpoint in checkpoints.items():
        check_others(checkpoint, tables[label], taken, problems)
        own = {name: _align(label, name, sources[name], union) for name in tables[label]}
        aligned[label] = replace(
            checkpoint,
            tensors={name: own.get(name, one) for name, one in checkpoint.tensors.items()},
            low_rank={name: one for name, one in checkpoint.low_rank.items() if name not in own},
            config=with_rows(checkpoint.config, union.rows),
        )
    return aligned


def _sources(
    name: str, checkpoints: Mapping[str, Checkpoint], tables: Mapping[str, Mapping[str, int]]
) -> dict[str, _Table]:
    """Give the tensor of each model that rows of `name` can be taken from.

    Where a model stores no head, its embedding is the head.
    """
    found = {}
    columns = next(found_in[name] for found_in in tables.values() if name in found_in)
    for label, checkpoint in checkpoints.items():
        embedding = embedding_name(checkpoint.tensors)
        other = name if name in tables[label] else None if columns == 1 else embedding
        if other is not None and tables[label].get(other) == columns:
            found[label] = _Table(checkpoint, other, columns)
    return found


def _align(label: str, name: str, sources: Mapping[str, _Table], union: Union) -> Stored:
    table = sources[label]
    stored = table.checkpoint.tensors[name]
    rows = aligned_rows(label, sources, union)
    shape = (union.rows, *stored.shape[1:])
    if stored.shape[0] == 1 and table.columns == 1:  # [1, rows]
        shape = (1, union.rows)
    size = DTYPES[rows.dtype].itemsize * union.rows * table.columns
    return replace(stored, dtype=rows.dtype, shape=shape, start=0, stop=size, memory=rows)


def aligned_rows(label: str, sources: Mapping[str, _Table], union: Union) -> AlignedRows:
    """Decide where each row of a model's tensor comes from."""
    labels = tuple(sources)
    count, filled = union.count, union.filled
    own = np.stack([union.own[one] for one in labels])
    has = own >= 0
    owner = np.full(union.rows, _PADDING, np.int64)
    ids = np.full(union.rows, -1, np.int64)
    some = has.sum(axis=0)
    default = np.where(some == 0, _ZERO, np.where(some == 1, has.argmax(axis=0), _MEAN))
    if union.base in labels:
        at = labels.index(union.base)
        default = np.where(has[at] & (some > 0), at, default)
    rows = np.take_along_axis(own, np.maximum(default, 0)[None], axis=0)[0]
    for number, wish in union.explicit.items():
        if wish is None or wish[0] not in labels:
            default[number], rows[number] = _ZERO, -1
        else:
            default[number], rows[number] = labels.index(wish[0]), wish[1]
    at = labels.index(label)
    mine = has[at].copy()
    mine[list(union.forced)] = False
    owner[:count] = np.where(mine, at, default)
    ids[:count] = np.where(mine, own[at], rows)
    unowned = np.ones(union.rows, bool)
    unowned[filled] = False
    owner[unowned] = _PADDING
    several = {
        int(row): tuple((k, int(own[k, row])) for k in range(len(labels)) if has[k, row])
        for row in np.flatnonzero(owner == _MEAN)
    }
    tables = tuple(sources.values())
    return AlignedRows(tables, owner, ids, several, tables[at].columns, _dtype(tables))


def _dtype(tables: Sequence[_Table]) -> str:
    """One dtype for all models, so that a row that several have is the same in each."""
    found = {one.checkpoint.tensors[one.name].dtype for one in tables}
    updated = any(one.is_updated for one in tables)
    return found.pop() if len(found) == 1 and not updated else "F32"


def check_others(
    checkpoint: Checkpoint, tables: Mapping[str, int], taken: Collection[str], problems: Problems
) -> None:
    """Refuse tensors that seem to go by word and are none of those known."""
    embedding = embedding_name(checkpoint.tensors)
    if embedding is None:
        return
    rows, columns = checkpoint.tensors[embedding].shape
    odd = [
        name
        for name, stored in checkpoint.tensors.items()
        if rows in stored.shape
        and stored.is_float
        and name not in (*tables, *taken)
        and not _PLACES.search(name)
        # Within a layer, or where the width is as large, sizes are the same by chance.
        and (_WORDS.search(name) or (layer_of(name) is None and rows != columns))
    ]
    if odd:
        shown = ", ".join(printable(name, 200) for name in odd[:3])
        what = f"{len(odd)} tensors are as long as the vocabulary, {rows}: {shown}"
        fix = "say by a rule in `where` which model they are taken from"
        problems.add(checkpoint.label, f"{what}; what their rows stand for is not known", fix)
