"""What a search leaves behind for people and programs: trials as CSV and JSON, recipes as YAML."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mergepipe.search.space import Gene
from mergepipe.search.study import Trial

__all__ = ["recipe_text", "trials_csv", "trials_json", "write_text"]


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
    return json.dumps({"losses": list(names), "trials": found}, indent=1) + "\n"


def recipe_text(data: Any, comment: str) -> str:
    """Give a recipe as YAML below a comment."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def write_text(file: Path, text: str) -> None:
    """Write a file in one step."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
