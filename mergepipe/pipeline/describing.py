"""The manifest of a result: what it was made of, and how it can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergepipe.checkpoint import Checkpoint
from mergepipe.digest import digest_file, digest_of
from mergepipe.errors import has_secret
from mergepipe.manifest import FORMAT, MANIFEST_FILE
from mergepipe.pipeline.dependencies import library_versions
from mergepipe.pipeline.inputs import InputFile
from mergepipe.pipeline.preparing import Prepared
from mergepipe.pipeline.transplanting import summary
from mergepipe.plan import Plan
from mergepipe.write import JOURNAL_FILE, STAGES, Journal, Record

__all__ = ["describe"]


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
        "recipe": _public(prepared.recipe.data),
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


def _public(value: Any) -> Any:
    """Give a recipe without what has the shape of a credential."""
    if isinstance(value, dict):
        return {name: _public(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    return "[secret]" if isinstance(value, str) and has_secret(value) else value


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
    source = checkpoint.source
    found: dict[str, Any] = {}
    if source.hub is not None:
        commit = checkpoint.folder.name  # of the hub's cache
        found["source"] = {"hub": source.hub, "revision": source.revision, "commit": commit}
    else:
        what = "file" if checkpoint.is_bare else "folder"
        found["source"] = {what: checkpoint.folder.resolve().name}
    found["files"] = {one.path.name: _file(one) for one in files if not one.is_adapter}
    if source.adapter or source.adapter_hub:
        found["adapter"] = {
            "source": _adapter(checkpoint),
            "files": {one.path.name: _file(one) for one in files if one.is_adapter},
        }
    return {**found, "tensors": dict(digests)}


def _adapter(checkpoint: Checkpoint) -> dict[str, str | None]:
    source = checkpoint.source
    if source.adapter_hub is not None:
        return {"hub": source.adapter_hub, "revision": source.adapter_revision}
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
        "files": {
            name: {"size": (folder / name).stat().st_size, "blake3": digest_file(folder / name)}
            for name in files
        },
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
