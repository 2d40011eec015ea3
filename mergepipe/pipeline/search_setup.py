"""What decides a search's trials, for its study; and its candidates as recipes for any place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergepipe.evaluate import Evaluation
from mergepipe.evaluate.cache import key_of
from mergepipe.pipeline.adapter_serving import absolute_server
from mergepipe.pipeline.ensembles import absolute_members
from mergepipe.pipeline.preparing import Prepared
from mergepipe.recipe import SearchSpec
from mergepipe.search.space import Space

__all__ = ["absolute", "setup_of"]

_AFTERWARDS = frozenset({"search", "output", "beside", "retention"})  # they decide no trial


def setup_of(
    prepared: Prepared,
    spec: SearchSpec,
    space: Space,
    evaluations: Sequence[Evaluation],
    batch: int,
) -> dict[str, Any]:
    """Give all that decides the trials, for JSON."""
    from mergepipe.model.fingerprint import file_digest, precision_of

    data = {k: v for k, v in space.document.data.items() if k not in _AFTERWARDS}
    loose = {"budget", "patience", "timeout", "max_failed_share", "finalists"}
    search = spec.fields.model_dump(exclude=loose)
    weights = {
        label: [file_digest(file) for file in sorted({t.file for t in one.tensors.values()})]
        for label, one in prepared.checkpoints.items()
    }
    return {
        "recipe": data,
        "search": {**search, "batch": batch},
        "genes": [asdict(gene) for gene in space.genes],
        "evaluations": {one.name: _content(one) for one in evaluations},
        "weights": weights,
        **({"pool": prepared.service.said["fingerprint"]} if prepared.service else {}),
        **_served(prepared),
        "scored": precision_of(prepared.resources.score_dtype, prepared.resources.device or "cpu"),
        "plugins": dict(prepared.plugins),
        "mergepipe": version("mergepipe"),
        "budget": spec.fields.budget,
        "libraries": {name: version(name) for name in ("nevergrad", "numpy")},
    }


def _served(prepared: Prepared) -> dict[str, Any]:
    """Give what tells the adapters and the server's base, where candidates are loaded there."""
    made = prepared.compositions
    if made is None:
        return {}
    return {"base": made.server.base.fingerprint, "adapters": dict(made.digests)}


def _content(evaluation: Evaluation) -> str:
    """Give a digest of the evaluator's code and of the data that it reads."""
    evaluator = evaluation.evaluator
    keyed = replace(evaluator, cached=None, digest=evaluator.digest or "none")
    return key_of(keyed, evaluation.parameters, evaluation.folder, fingerprint="search")


def absolute(prepared: Prepared, data: Any, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Give a recipe that means the same wherever it stands."""
    folder, found = prepared.recipe.file.parent, copy.deepcopy(data)
    merged = {} if prepared.ensemble is not None else prepared.recipe.sources
    if prepared.ensemble is not None:
        absolute_members(prepared, found)
    for label, source in merged.items():
        entry = found["models"][label]
        entry = dict(entry) if isinstance(entry, dict) else {"path": entry}
        if source.path is not None:
            entry["path"] = str(source.path.resolve())
        if source.adapter is not None:
            entry["adapter"] = str(source.adapter.resolve())
        found["models"][label] = entry["path"] if set(entry) == {"path"} else entry
    if prepared.compositions is not None:
        absolute_server(prepared, found)
    for label, spec in prepared.recipe.beside.items():
        if spec.tokenizer is not None:
            found["beside"][label]["tokenizer"] = str(spec.tokenizer.resolve())
    for entry, evaluation in zip(found.get("evaluate", []), evaluations, strict=True):
        entry.update(_paths(entry, evaluation, folder))
    target = prepared.recipe.output.path
    if target is not None:
        found["output"]["path"] = str(target.resolve())
    return dict(found)


def _paths(entry: Mapping[str, Any], evaluation: Evaluation, folder: Path) -> dict[str, str]:
    """Give the parameters of an evaluation that are paths, as absolute ones."""
    read = evaluation.parameters.model_dump(by_alias=True)
    return {
        key: str((folder / Path(value).expanduser()).resolve())
        for key, value in entry.items()
        if isinstance(value, str)
        and (isinstance(read.get(key), Path) or ("/" in value and (folder / value).exists()))
    }
