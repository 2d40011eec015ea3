"""Task vectors as a report shows them, and as a file keeps them for the next report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias

from mergepipe.inspect import Report, Sums, model_numbers, pair_numbers
from mergepipe.report.contents import Maps, Numbers, Pair

__all__ = ["kept", "maps_of", "read_kept"]

_FORMAT = 1
_OUTSIDE = "outside"
_Number: TypeAlias = Callable[[Sums], float | None]


def maps_of(report: Report) -> Maps:
    """Lay out what was measured: kinds of tensors down, layers across, those of none first."""
    layers = sorted(report.layers, key=lambda one: one != _OUTSIDE)
    kinds = tuple(report.kinds)

    def laid_out(number: _Number) -> list[list[float | None]]:
        cells = [[report.cells.get((layer, kind)) for layer in layers] for kind in kinds]
        return [[None if x is None else number(x) for x in row] for row in cells]

    def by_kind(number: _Number) -> list[float | None]:
        return [number(sums) for sums in report.kinds.values()]

    norms = {label: partial(_norm, i) for i, label in enumerate(report.labels)}
    return Maps(
        base=report.base.label,
        kinds=kinds,
        layers=tuple(layers),
        norms={label: laid_out(number) for label, number in norms.items()},
        norms_by_kind={label: by_kind(number) for label, number in norms.items()},
        totals={label: number(report.total) for label, number in norms.items()},
        pairs=[
            Pair(
                (report.labels[i], report.labels[j]),
                cosine=laid_out(partial(_cosine, i, j)),
                conflict=laid_out(partial(_conflict, i, j)),
                conflict_by_kind=by_kind(partial(_conflict, i, j)),
                total_cosine=_cosine(i, j, report.total),
                total_conflict=_conflict(i, j, report.total),
            )
            for i, j in report.pairs
        ],
    )


def _norm(i: int, sums: Sums) -> float | None:
    return model_numbers(sums, i).relative_norm


def _cosine(i: int, j: int, sums: Sums) -> float | None:
    return pair_numbers(sums, i, j).cosine


def _conflict(i: int, j: int, sums: Sums) -> float | None:
    return pair_numbers(sums, i, j).conflict


def kept(maps: Maps, identity: str) -> str:
    """Give the text of a file that keeps maps of the inputs with this digest."""
    return json.dumps({"format": _FORMAT, "of": identity, "maps": asdict(maps)}) + "\n"


def read_kept(text: str, identity: str) -> Maps | None:
    """Give kept maps, or None if they are of other inputs or cannot be read."""
    try:
        found = json.loads(text)
        if found["format"] != _FORMAT or found["of"] != identity:
            return None
        return _read(found["maps"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _read(found: dict[str, Any]) -> Maps:
    pairs = [Pair(**{**one, "models": tuple(one["models"])}) for one in found["pairs"]]
    maps = Maps(**{**found, "pairs": pairs})
    shape = (len(maps.kinds), len(maps.layers))
    grids: list[Numbers] = [*maps.norms.values()]
    grids += [grid for pair in pairs for grid in (pair.cosine, pair.conflict)]
    if any(len(grid) != shape[0] or any(len(row) != shape[1] for row in grid) for grid in grids):
        raise ValueError("not as many numbers as modules and layers")
    lines = [row for grid in grids for row in grid]
    lines += [*maps.norms_by_kind.values(), *(one.conflict_by_kind for one in pairs)]
    lines += [[*maps.totals.values()], *([x.total_cosine, x.total_conflict] for x in pairs)]
    if not all(value is None or isinstance(value, float | int) for row in lines for value in row):
        raise ValueError("not all of them are numbers")
    return maps
