"""What a report tells, as data; a part that is None or empty was not there to tell of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergepipe.evaluate import Scores
from mergepipe.search.space import Gene
from mergepipe.search.study import Trial
from mergepipe.search.verdict import Verdict

__all__ = [
    "Coefficients",
    "Contents",
    "Found",
    "Input",
    "Maps",
    "Pair",
    "RunRecord",
    "Stage",
    "Table",
    "Transplanted",
]

Numbers = Sequence[Sequence[float | None]]  # by row and column of a heat map


@dataclass(frozen=True, slots=True)
class Input:
    """A model that went in: where it is from, its files, a digest of what was read of it."""

    label: str
    source: str
    bytes: int
    tensors: int
    digest: str
    is_base: bool = False
    licence: str = ""
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """A parameter that is not the same everywhere.

    `curves` are, by group of modules and by model, (layer, value); layer None is outside of all.
    """

    name: str
    curves: Mapping[str, Mapping[str, Sequence[tuple[int | None, float]]]]


@dataclass(frozen=True, slots=True)
class Stage:
    """A merge: its method in a sentence, and the parameters of each model and of all."""

    name: str
    method: str
    sentence: str
    doc: str  # the rest of what its file says: who proposed it, its formula
    base: str | None
    each: Mapping[str, Mapping[str, str]]  # model -> parameter -> value
    shared: Mapping[str, str]
    rules: Sequence[str] = ()
    then: Sequence[str] = ()  # what follows the merge
    coefficients: Sequence[Coefficients] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models' changes: by module and layer, by module, and on the whole."""

    models: tuple[str, str]
    cosine: Numbers
    conflict: Numbers
    conflict_by_kind: Sequence[float | None]
    total_cosine: float | None
    total_conflict: float | None


@dataclass(frozen=True, slots=True)
class Maps:
    """Task vectors measured: modules are rows, layers columns, the first one is of no layer."""

    base: str
    kinds: Sequence[str]
    layers: Sequence[str]
    norms: Mapping[str, Numbers]  # relative to the base's
    norms_by_kind: Mapping[str, Sequence[float | None]]
    totals: Mapping[str, float | None]
    pairs: Sequence[Pair]


@dataclass(frozen=True, slots=True)
class Table:
    """A tensor that a transplant made: its rows by what they were given, and medians."""

    tensor: str
    rows: Sequence[tuple[str, int]]
    residual: float | None
    norms: Sequence[tuple[str, float]]
    worst: Sequence[tuple[str, float | None, float]]  # token, residual, norm


@dataclass(frozen=True, slots=True)
class Transplanted:
    """A model that got another tokenizer."""

    name: str
    method: str
    model: str
    tokenizer: str
    tokens: int
    matches: Sequence[tuple[str, int]]
    tables: Sequence[Table]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A search: what was searched, its trials, and what held-out items said."""

    genes: Sequence[Gene]
    names: Sequence[str]  # of the losses
    trials: Sequence[Trial]
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """How a run went: when, how long each part took, how much memory."""

    started: str
    parts: Sequence[tuple[str, float]]  # what, seconds
    scoring: Sequence[tuple[str, float]]  # model, seconds
    cpu_seconds: float | None
    peak_bytes: float | None
    bytes_read: float | None
    threads: float | None
    device: str | None
    kept: int = 0  # tensors that an earlier run had made
    # Where the recipe and the models were, as seen from the result; not shown.
    folders: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Contents:
    """A run."""

    name: str
    identity: str  # the same for every report of this run
    facts: Sequence[tuple[str, str]] = ()
    result: str | None = None  # the label of the merge among the scores
    base: str | None = None
    scores: Scores | None = None
    inputs: Sequence[Input] = ()
    stages: Sequence[Stage] = ()
    maps: Maps | None = None
    no_maps: str = ""  # why they are not there
    found: Found | None = None
    transplants: Sequence[Transplanted] = ()
    warnings: Sequence[str] = ()
    record: RunRecord | None = None
    recipe: str = ""
    again: Sequence[str] = ()  # commands
    versions: str = ""
