"""mergekit 0.1.4's rules for tensors of different shapes, which are an error otherwise.

Of the vocabulary it merges the rows that all models have, the first ones; its methods on task
vectors cut the models to the base's rows, and leave a model out where its tensor is another size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from mergepipe.checkpoint import Checkpoint, Stored, embedding_name
from mergepipe.errors import Problems, printable
from mergepipe.plan.align import head_name, place_of
from mergepipe.plan.slices import Wanted

__all__ = ["Compat"]

_MATRIX = 2


class Compat:
    """Applies the rules to the tensors of one merge; `rows` are those of a cut vocabulary.

    `by_base` are the methods that cut to the base.
    """

    def __init__(self, donor: Checkpoint, by_base: Collection[str], problems: Problems) -> None:
        self.donor, self.by_base, self.problems = donor, by_base, problems
        self.rows: int | None = None
        self._words = {embedding_name(donor.tensors), head_name(donor.tensors)}

    def cut(
        self, one: Wanted, method: str, stored: Mapping[str, Stored], base: str | None
    ) -> Wanted:
        """Give a tensor with the rows that are merged, and say how many are dropped."""
        alike = len({each.shape[1:] for each in stored.values()}) == 1
        if one.name not in self._words or not alike or len(one.stored.shape) != _MATRIX:
            return one
        counts = {label: each.shape[0] for label, each in stored.items()}
        rows = min(counts.values())
        if base in counts and method in self.by_base:
            rows = counts[base]
        lost = max(counts.values()) - rows
        if lost > 0:
            what = f"{printable(one.name, 200)}: the first {rows} rows are merged, up to {lost}"
            why = "are dropped, with their words, as mergekit 0.1.4 does"
            self.problems.warn(place_of(self.donor), f"{what} {why}")
            self.rows = rows if self.rows is None else min(rows, self.rows)
        return replace(one, stored=replace(one.stored, shape=(rows, *one.stored.shape[1:])))

    def takes(self, one: Wanted, theirs: Stored) -> bool:
        """Tell whether a tensor has the rows that are merged, and more."""
        ours = one.stored.shape
        return (
            one.name in self._words and theirs.shape[1:] == ours[1:] and theirs.shape[0] >= ours[0]
        )

    def skips(self, one: Wanted, method: str, label: str, theirs: Stored) -> bool:
        """Tell whether a model is left out of a tensor, and say so."""
        if method not in self.by_base or one.name in self._words:
            return False
        shapes = f"{list(theirs.shape)} there, {list(one.stored.shape)} in the base"
        what = f"{printable(one.name, 200)}: {label} is left out: {shapes}, as mergekit 0.1.4 does"
        self.problems.warn(place_of(self.donor), what)
        return True
