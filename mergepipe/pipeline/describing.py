"""The manifest of a result: what it was made of, and how it can be checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergepipe.card import said_of
from mergepipe.checkpoint import Checkpoint
from mergepipe.digest import digest_file, digest_of
from mergepipe.errors import printable
from mergepipe.evaluate import Scores, results_json
from mergepipe.manifest import FORMAT, MANIFEST_FILE
from mergepipe.pipeline.dependencies import library_versions
from mergepipe.pipeline.inputs import InputFile
from mergepipe.pipeline.masking import masked
from mergepipe.pipeline.preparing import Prepared
from mergepipe.pipeline.transplanting import summary
from mergepipe.plan import Plan
from mergepipe.report.paths import without_paths
from mergepipe.write import CHAT_TEMPLATES, JOURNAL_FILE, STAGES, Journal, Record, tokenizer_files

__all__ = ["describe", "describe_scores"]

_BESIDE_WEIGHTS = (*CHAT_TEMPLATES, "generation_config.json")
_SCORE_FIELDS = (
    *("model", "evaluator", "name", "metric", "value", "unit"),
    *("stderr", "n", "higher_is_better"),
)


def describe(
    prepared: Prepared,
    inputs: Mapping[str, tuple[InputFile, ...]],
    journal: Journal,
    folder: Path,
) -> dict[str, Any]:
    """Give the content of the manifest of the result in `folder`, whole but for the manifest.

    Everything is in the order of recipe and plan; nothing tells when, where or by whom it was run.
    """
    records = {plan.name: journal.of(plan.name) for plan in prepared.plans}
    digests = _input_digests(prepared, records)
    return {
        "format": FORMAT,
        "mergepipe": version("mergepipe"),
        "libraries": library_versions(),
        **({"plugins": dict(prepared.plugins)} if prepared.plugins else {}),
        "recipe": masked(prepared.recipe.data),
        "seed": prepared.recipe.seed,
        "stages": {plan.name: _stage(plan, records[plan.name]) for plan in prepared.plans},
        **_transplants(prepared, journal),
        "inputs": {
            label: _model(checkpoint, inputs[label], digests.get(label, {}))
            for label, checkpoint in prepared.checkpoints.items()
        },
        "output": _output(prepared.plans[-1], records[prepared.plans[-1].name], folder),
    }


def _transplants(prepared: Prepared, journal: Journal) -> dict[str, Any]:
    found = {name: summary(one, journal) for name, one in prepared.transplants.items()}
    return {"transplants": found} if found else {}


def _stage(plan: Plan, records: Mapping[str, Record]) -> dict[str, Any]:
    noted = {step.name: records[step.name].note for step in plan.steps if records[step.name].note}
    return {"method": plan.spec.method, "notes": noted}


def _input_digests(
    prepared: Prepared, records: Mapping[str, Mapping[str, Record]]
) -> dict[str, dict[str, str]]:
    """Give the digests of the input tensors that were read: label -> tensor -> digest."""
    found: dict[str, dict[str, str]] = {}
    for plan in prepared.plans:
        for step in plan.steps:
            digests = records[plan.name][step.name].inputs
            for one, digest in zip(step.all_inputs, digests, strict=False):
                found.setdefault(one.label, {})[one.name] = digest
    return found


def _model(
    checkpoint: Checkpoint, files: tuple[InputFile, ...], digests: Mapping[str, str]
) -> dict[str, Any]:
    source, own = checkpoint.source, [one for one in files if not one.is_adapter]
    found: dict[str, Any] = {}
    if source.hub is not None:
        commit = checkpoint.folder.name  # of the hub's cache
        found["source"] = {"hub": source.hub, "revision": source.revision, "commit": commit}
    else:
        what = "file" if checkpoint.is_bare else "folder"
        found["source"] = {what: checkpoint.folder.resolve().name}
    found |= said_of(checkpoint.folder)
    found["files"] = {one.path.name: _file(one) for one in own}
    if not checkpoint.is_bare:
        found["beside"] = _beside_weights(checkpoint.folder)
    if source.adapter or source.adapter_hub:
        theirs = [one for one in files if one.is_adapter]
        found["adapter"] = {
            "source": _adapter(checkpoint, theirs),
            **(said_of(theirs[0].path.parent) if theirs else {}),
            # Adapters are small, and their weights are in none of the digests of tensors.
            "files": {
                one.path.name: {"size": one.size, "blake3": digest_file(one.path)} for one in theirs
            },
        }
    return {**found, "tensors": dict(digests)}


def _beside_weights(folder: Path) -> dict[str, dict[str, object]]:
    """Give the files that the result's tokenizer and settings may have been made of."""
    names = (*tokenizer_files(folder), *_BESIDE_WEIGHTS)
    return {name: _whole(folder / name) for name in names if (folder / name).is_file()}


def _whole(file: Path) -> dict[str, object]:
    return {"size": file.stat().st_size, "blake3": digest_file(file)}


def _adapter(checkpoint: Checkpoint, files: Sequence[InputFile]) -> dict[str, str | None]:
    source = checkpoint.source
    if source.adapter_hub is not None:
        commit = files[0].path.parent.name if files else None
        return {"hub": source.adapter_hub, "revision": source.adapter_revision, "commit": commit}
    assert source.adapter is not None, "an adapter is a folder or on the hub"
    return {"folder": source.adapter.resolve().name}


def _file(one: InputFile) -> dict[str, object]:
    what = "header" if one.path.suffix == ".safetensors" else "blake3"
    return {"size": one.size, **({what: one.digest} if one.digest else {})}


def _output(plan: Plan, records: Mapping[str, Record], folder: Path) -> dict[str, Any]:
    shards = {shard.file: shard for shard in plan.layout.shards}
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    ours = (*shards, JOURNAL_FILE, MANIFEST_FILE)
    files = [one for one in sorted(names) if one not in ours and not one.startswith(f"{STAGES}/")]
    return {
        "files": {name: _whole(folder / name) for name in files},
        "shards": {
            name: {"size": shard.size, "header": digest_of(shard.header)}
            for name, shard in shards.items()
        },
        "tensors": {
            step.name: {
                "shard": plan.layout.shards[plan.layout.place[step.name][0]].file,
                "blake3": records[step.name].digest,
            }
            for step in plan.steps
        },
    }


def describe_scores(scores: Scores, text: bytes) -> dict[str, Any]:
    """Give the part of the manifest on scores; `text` is all of results.jsonl."""
    rows: Any = results_json(scores.rows)["results"]
    failed = [
        {
            "model": one.model,
            "evaluator": one.evaluator,
            "name": one.evaluation,
            "failed": without_paths(printable(one.reason, 500)),
        }
        for one in scores.failures
    ]
    return {
        "size": len(text),
        "blake3": digest_of(text),
        "scores": [{name: row[name] for name in _SCORE_FIELDS} for row in rows],
        **({"failures": failed} if failed else {}),
    }
