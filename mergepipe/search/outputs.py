"""What a search leaves behind for people and programs: trials as CSV and JSON, recipes as YAML."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mergepipe.search.space import Gene, read_gene
from mergepipe.search.study import Trial

__all__ = [
    "read_trials",
    "recipe_text",
    "trials_csv",
    "trials_json",
    "write_folder",
    "write_text",
    "write_trials",
]


def trials_csv(genes: Sequence[Gene], names: Sequence[str], trials: Sequence[Trial]) -> str:
    """Give a line a trial: number, state, losses, scores, seconds, values, reason."""
    scores = list(dict.fromkeys(name for trial in trials for name in trial.scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    values = [gene.name for gene in genes]
    writer.writerow(["trial", "state", *names, *scores, "seconds", "items", *values, "reason"])
    for trial in trials:
        losses = trial.losses or ("",) * len(names)
        found = [trial.scores.get(name, "") for name in scores]
        items = "" if trial.items is None else trial.items
        head = [trial.number, trial.state, *losses, *found, round(trial.seconds, 3), items]
        writer.writerow([*head, *trial.values, trial.reason])
    return text.getvalue()


def trials_json(genes: Sequence[Gene], names: Sequence[str], trials: Sequence[Trial]) -> str:
    """Give all that is known of the trials."""
    found = [
        asdict(trial) | {"values": dict(zip((g.name for g in genes), trial.values, strict=True))}
        for trial in trials
    ]
    searched = [asdict(gene) for gene in genes]
    plain = {"losses": list(names), "genes": searched, "trials": found}
    return json.dumps(plain, indent=1) + "\n"


def read_trials(text: str) -> tuple[tuple[Gene, ...], tuple[str, ...], tuple[Trial, ...]]:
    """Give genes, names of losses and trials that `trials_json` wrote.

    Raises
    ------
    ValueError
        if it is none of its.

    """
    try:
        found = json.loads(text)
        genes = tuple(read_gene(one) for one in found["genes"])
        trials = tuple(_trial(one) for one in found["trials"])
        return genes, tuple(map(str, found["losses"])), trials
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not the trials of a search: {error}") from error


def _trial(found: dict[str, Any]) -> Trial:
    return Trial(
        number=int(found["number"]),
        values=tuple(found["values"].values()),
        state=found["state"],
        losses=tuple(map(float, found["losses"])),
        scores={str(name): float(score) for name, score in found["scores"].items()},
        reason=str(found["reason"]),
        seconds=float(found["seconds"]),
        merging=float(found["merging"]),
        items=found["items"],
        same_as=found["same_as"],
    )


def write_trials(
    folder: Path, name: str, genes: Sequence[Gene], losses: Sequence[str], trials: Sequence[Trial]
) -> None:
    """Write trials as CSV and JSON."""
    write_text(folder / f"{name}.csv", trials_csv(genes, losses, trials))
    write_text(folder / f"{name}.json", trials_json(genes, losses, trials))


def recipe_text(data: Any, comment: str) -> str:
    """Give a recipe as YAML below a comment."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def write_folder(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts by their files' names; numbered ones that an earlier search left there go."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    for file in folder.glob("[0-9][0-9][0-9][0-9][0-9].yaml"):
        if file.name not in texts:
            file.unlink()


def write_text(file: Path, text: str) -> None:
    """Write a file in one step."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
