"""Adapters composed by a search: here, or on a merge service; the items are frozen beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate.data import read_jsonl
from mergepipe.model import Model
from mergepipe.search.evo import EVO, Found, Genome, Preset, evolve, lorahub, uniform
from mergepipe.write import disk_faults

__all__ = [
    "Composed",
    "Evolved",
    "Pair",
    "evolve_adapters",
    "read_pairs",
    "report_text",
    "write_report",
]

Pair: TypeAlias = "tuple[str, str]"
Composed: TypeAlias = Callable[[Sequence[float], Sequence[float]], Model]
Report: TypeAlias = Callable[[int, float], None]
_HELD_OUT = 5  # every so many-th pair


@dataclass(frozen=True, slots=True)
class Evolved:
    """What was found, and mean losses in nats a token: on what was searched on, and on the rest.

    Without held-out pairs `held_out` is empty.
    """

    labels: tuple[str, ...]
    found: Found
    seen: dict[str, float]
    held_out: dict[str, float]


def read_pairs(file: Path) -> list[Pair]:
    """Read lines of `{"prompt": ..., "label": ...}`.

    Raises
    ------
    InputError
        naming each faulty line.

    """
    if not file.is_file():
        raise InputError(Problem(str(file), "there is no such file"))
    records = read_jsonl(file, {"prompt": str, "label": str})
    return [(record["prompt"], record["label"]) for record in records.values()]


def evolve_adapters(
    composed: Composed,
    labels: Sequence[str],
    pairs: Sequence[Pair],
    *,
    how: Literal["evo", "lorahub"] = "evo",
    preset: Preset = EVO,
    seed: int = 42,
    report: Report | None = None,
) -> Evolved:
    """Search a composition by the loss of the pairs' labels; every fifth pair is held out.

    `report` is told how many evaluations are done, and the best loss among them.

    Raises
    ------
    InputError
        if there are fewer than two pairs, or as `evolve`.

    """
    seen = [pair for at, pair in enumerate(pairs) if at % _HELD_OUT]
    held_out = [pair for at, pair in enumerate(pairs) if not at % _HELD_OUT]
    if not seen:
        raise InputError("a search needs two pairs at least: one is held out")
    done, best = 0, float("inf")

    def evaluate(genomes: Sequence[Genome]) -> list[float]:
        nonlocal done, best
        losses = [_loss(composed(one.keep, one.weights), seen) for one in genomes]
        done, best = done + len(losses), min(best, *losses)
        if report is not None:
            report(done, best)
        return losses

    if how == "evo":
        found = evolve(len(labels), evaluate, preset=preset, seed=seed)
    else:
        found = lorahub(len(labels), evaluate, seed=seed)
    compared = {
        "base": Genome((1.0,) * len(labels), (0.0,) * len(labels)),
        "uniform": uniform(len(labels)),
        "found": found.genome,
    }

    def losses(items: Sequence[Pair]) -> dict[str, float]:
        return {
            name: _loss(composed(one.keep, one.weights), items) for name, one in compared.items()
        }

    return Evolved(tuple(labels), found, losses(seen), losses(held_out))


def _loss(model: Model, pairs: Sequence[Pair]) -> float:
    """The mean cross-entropy of the labels' tokens, in nats."""
    scores = model.loglikelihood(pairs)
    tokens = sum(one.tokens for one in scores)
    if not tokens:
        raise InputError("the labels hold no tokens")
    return -sum(one.logprob for one in scores) / tokens


def report_text(evolved: Evolved) -> str:
    """Give what was found as JSON: coefficients as a service takes them, losses, the curve."""
    genome = evolved.found.genome
    triples = zip(evolved.labels, genome.keep, genome.weights, strict=True)
    models = {label: {"density": keep, "weight": weight} for label, keep, weight in triples}
    found = {key: value for key, value in asdict(evolved.found).items() if key != "genome"}
    said = {
        "merge": {"method": "lora_composition", "models": models},
        "seen": evolved.seen,
        "held_out": evolved.held_out,
        **found,
    }
    return json.dumps(said, indent=1) + "\n"


def write_report(evolved: Evolved, file: Path) -> None:
    """Write the report beside an adapter, or by itself."""
    with disk_faults(file):
        file.write_text(report_text(evolved), encoding="utf-8")
