"""A manifest, a record and a transplant's report -> what a page tells of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from mergepipe.digest import digest_of
from mergepipe.report.contents import Input, RunRecord, Table, Transplanted
from mergepipe.report.parts import size
from mergepipe.report.paths import portable, without_paths
from mergepipe.search.verdict import Gain, Verdict

__all__ = [
    "facts_of",
    "inputs_of",
    "notes_of",
    "recipe_text",
    "record_of",
    "transplants_of",
    "verdict_of",
    "versions_of",
]

_MOST_NOTES = 20
_MEDIAN = "0.5"


def facts_of(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give what the result is."""
    if config.get("architectures"):
        yield "architecture", ", ".join(map(str, config["architectures"]))
    yield "tensors", f"{len(manifest['output']['tensors']):,}"
    dtype = config.get("dtype") or config.get("torch_dtype")
    if dtype:
        yield "stored as", str(dtype)
    yield "size", size(sum(one["size"] for one in manifest["output"]["shards"].values()))
    yield "seed", str(manifest["seed"])
    yield "manifest", str(manifest.get("blake3", ""))[:12]


def inputs_of(manifest: Mapping[str, Any], base: str | None) -> list[Input]:
    """Give the models that went in."""
    found = []
    for label, one in manifest["inputs"].items():
        tensors = json.dumps(one["tensors"], sort_keys=True)
        adapter = one.get("adapter")
        found.append(
            Input(
                label=str(label),
                source=_source(one["source"]),
                bytes=sum(int(file["size"]) for file in one["files"].values()),
                tensors=len(one["tensors"]),
                digest=digest_of(tensors.encode()),
                is_base=label == base,
                licence=str(one.get("license") or one.get("licence") or ""),
                adapter="" if adapter is None else f"adapter {_source(adapter['source'])}",
            )
        )
    return found


def _source(source: Mapping[str, Any]) -> str:
    if "hub" in source:
        revision = source.get("commit") or source.get("revision")
        return f"{source['hub']}{f' @ {str(revision)[:12]}' if revision else ''}"
    return f"{next(iter(source))} {next(iter(source.values()))}"


def notes_of(manifest: Mapping[str, Any]) -> list[str]:
    """Give what the manifest notes of single tensors."""
    found = [
        f"{tensor}: {note}"
        for stage in manifest["stages"].values()
        for tensor, note in stage.get("notes", {}).items()
    ]
    more = len(found) - _MOST_NOTES
    return found[:_MOST_NOTES] + ([f"and {more:,} more tensors like these"] if more > 0 else [])


def recipe_text(recipe: Any) -> str:
    """Give the recipe as YAML, without the paths of whoever ran it."""
    return yaml.safe_dump(portable(recipe), sort_keys=False, allow_unicode=True, width=100)


def versions_of(manifest: Mapping[str, Any]) -> str:
    """Give what made the result."""
    libraries = (f"{name} {number}" for name, number in manifest["libraries"].items())
    return f"Made by mergepipe {manifest['mergepipe']} with {', '.join(libraries)}."


def recorded_folders(record: Any) -> list[str]:
    """Give where recipe and models were, as seen from the result's folder, by a run's record."""
    said = [record.get("recipe_folder"), *record.get("model_folders", ())]
    return [one for one in said if isinstance(one, str)]


def record_of(text: str) -> tuple[RunRecord, list[str]]:
    """Give the record of a run, and its warnings.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        if it is none.

    """
    found = json.loads(text)
    record = RunRecord(
        started=str(found["started"]),
        parts=[(str(one["what"]), float(one["seconds"])) for one in found["parts"]],
        scoring=[(str(m), float(seconds)) for m, seconds in found.get("scoring", {}).items()],
        cpu_seconds=_maybe(found, "cpu_seconds"),
        peak_bytes=_maybe(found, "peak_bytes"),
        bytes_read=_maybe(found, "bytes_read"),
        threads=_maybe(found, "threads"),
        device=None if found.get("device") is None else str(found["device"]),
        kept=int(found.get("kept_tensors", 0)),
        folders=recorded_folders(found),
    )
    return record, [without_paths(str(one)) for one in found.get("warnings", [])]


def _maybe(found: Mapping[str, Any], name: str) -> float | None:
    return None if found.get(name) is None else float(found[name])


def transplants_of(found: Any) -> list[Transplanted]:
    """Give what `transplant.json` says, by stage."""
    return [
        Transplanted(
            name=str(name),
            method=str(one["method"]),
            model=str(one["model"]),
            tokenizer=str(one["tokenizer"]),
            tokens=int(one["tokens"]),
            matches=_counts(one["matches"]),
            tables=[_table(table) for table in one["tables"]],
            note=str(one["digits"].get("warning") or ""),
        )
        for name, one in (found or {}).items()
    ]


def _table(found: Mapping[str, Any]) -> Table:
    residual = _maybe(found["residuals"], _MEDIAN)
    return Table(
        tensor=str(found["tensor"]),
        rows=_counts(found["rows"]),
        residual=residual,
        norms=[(str(kind), float(one[_MEDIAN])) for kind, one in found["norms"].items() if one],
        worst=[(str(x["token"]), _maybe(x, "residual"), float(x["norm"])) for x in found["worst"]],
    )


def _counts(found: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(str(kind).replace("_", " "), int(count)) for kind, count in found.items() if count]


def verdict_of(found: Any) -> Verdict | None:
    """Give what held-out items say of a search's winner, if that is known."""
    if found is None:
        return None
    gains = tuple(
        Gain(
            over=str(one["over"]),
            part=one["part"],
            value=float(one["value"]),
            low=_maybe(one, "low"),
            high=_maybe(one, "high"),
            n=int(one["n"]),
            evaluation=None if one["evaluation"] is None else str(one["evaluation"]),
        )
        for one in found["gains"]
    )
    winner, best, overfit = (
        int(found["winner"]),
        str(found["best_input"]),
        bool(found["is_overfit"]),
    )
    return Verdict(winner, found["part"], gains, best, is_overfit=overfit)
