"""All that the bytes of a run depend on, and what of it is other than it was."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from blake3 import blake3

from mergepipe.checkpoint import LowRank
from mergepipe.pipeline.inputs import InputFile
from mergepipe.pipeline.preparing import Prepared
from mergepipe.plan import Input, Plan, Step
from mergepipe.tokenizer import AlignedRows

__all__ = ["changes", "dependencies", "library_versions", "step_values"]

_LIBRARIES = ("numba", "numpy", "torch")
_MOST_CHANGES = 5


def library_versions() -> dict[str, str]:
    """Give the versions of the libraries that compute."""
    return {name: version(name) for name in _LIBRARIES}


def dependencies(prepared: Prepared, inputs: Mapping[str, tuple[InputFile, ...]]) -> dict[str, Any]:
    """Give the head of the journal: if it is equal, tensors made before are those of this run."""
    return {
        "mergepipe": version("mergepipe"),
        "libraries": library_versions(),
        "inputs": {
            label: {one.shown: _file(one) for one in files} for label, files in inputs.items()
        },
        "plugins": dict(prepared.plugins),
        **_tokenizer(prepared),
        **_transplants(prepared),
        "plans": {plan.name: _plan_digest(plan) for plan in prepared.plans},
        # Only for saying what changed: the plans hold what it comes to.
        "recipe": json.loads(json.dumps(prepared.recipe.data, default=str)),
    }


def _tokenizer(prepared: Prepared) -> dict[str, str]:
    """Give the digest of a tokenizer that is made, where one is."""
    united = prepared.united
    made = None if united is None else united.tokenizer
    return {} if made is None else {"tokenizer": made.digest}


def _transplants(prepared: Prepared) -> dict[str, dict[str, str]]:
    found = {name: one.digest for name, one in prepared.transplants.items()}
    return {"transplants": found} if found else {}


def _file(one: InputFile) -> list[object]:
    return [str(one.path.resolve()), one.size, one.mtime_ns, one.digest]


def _plan_digest(plan: Plan) -> str:
    hasher = blake3(json.dumps([plan.seed, [s.file for s in plan.layout.shards]]).encode())
    for step in plan.steps:
        hasher.update(json.dumps([step_values(step), plan.layout.place[step.name]]).encode())
    return str(hasher.hexdigest())


def step_values(step: Step, without: Collection[str] = ()) -> list[object]:
    """Give all that a tensor's bytes depend on beside its inputs' bytes, for JSON.

    Parameters of its method whose names are in `without` are left out.
    """
    left_out = set(without)
    return [
        step.name,
        step.dtype,
        step.shape,
        step.method,
        [_input(one) for one in step.all_inputs],
        step.base is not None,
        [one.model_dump(by_alias=True, exclude=left_out) for one in step.each],
        None if step.shared is None else step.shared.model_dump(by_alias=True, exclude=left_out),
        step.depth,
        step.role,
        [[name, shared.model_dump(by_alias=True)] for name, shared in step.then],
    ]


def _input(one: Input) -> list[object]:
    stored, update = one.stored, one.checkpoint.low_rank.get(one.name)
    where: list[object] = [stored.file.name, stored.start, stored.dtype, stored.shape]
    if isinstance(stored.memory, AlignedRows):
        where.append(stored.memory.digest)
    return [one.label, one.name, where, None if update is None else _update(update)]


def _update(update: LowRank) -> list[object]:
    return [update.a.name, update.b.name, update.scale, update.transposed]


def changes(before: Any, now: Mapping[str, Any]) -> list[str]:
    """Say what is other than it was when an unfinished output was begun; [] if nothing is."""
    if {**before, "recipe": None} == {**now, "recipe": None}:
        return []
    was, here = before.get("mergepipe"), now["mergepipe"]
    if was != here:
        return [f"mergepipe is another version ({here}, was {was})"]
    found = [
        f"{name} is another version ({here}, was {was})"
        for name, was, here in _differences(before.get("libraries"), now["libraries"])
    ]
    found += _changed_files(before.get("inputs", {}), now["inputs"])
    if before.get("tokenizer") != now.get("tokenizer"):
        found.append("the tokenizer of the result changed")
    found += [
        f"the plugin {name} changed"
        for name, _, _ in _differences(before.get("plugins", {}), now["plugins"])
    ]
    found += [
        f"the recipe changed: {name} was {_shown(was)}, is {_shown(here)}"
        for name, was, here in _differences(before.get("recipe"), now["recipe"])
    ]
    return found[:_MOST_CHANGES] or ["the plan changed"]


def _changed_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = {
        name for label in now for name, _, _ in _differences(before.get(label, {}), now[label])
    }
    return [f"{name} changed" for name in sorted(found)]


def _differences(was: Any, here: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Give the fields of JSON values that differ: name, old and new value; None where absent."""
    if not isinstance(was, dict) or not isinstance(here, dict):
        if was != here:
            yield path, was, here
        return
    for name in dict.fromkeys((*here, *was)):
        yield from _differences(
            was.get(name), here.get(name), f"{path}.{name}" if path else str(name)
        )


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)
