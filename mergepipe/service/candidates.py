"""Candidates: merges of the pool that clients described, made in memory when they are asked."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mergepipe.checkpoint import Checkpoint
from mergepipe.errors import InputError, Problem, Problems, did_you_mean
from mergepipe.execute import Resources
from mergepipe.pipeline import LiveModels, Prepared
from mergepipe.pipeline.preparing import Options, prepare_merge, replanned
from mergepipe.recipe import Document
from mergepipe.service.pool import COMPOSITION, Pool

if TYPE_CHECKING:
    from mergepipe.lora.composing import AdapterPool
    from mergepipe.model.local import LocalModel

__all__ = ["Candidate", "Candidates"]

_FIELDS = ("merge", "seed", "dtype")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A merge as it was posted, checked. The same post by the same client has the same id."""

    id: str
    owner: str
    fields: Mapping[str, Any]

    @property
    def method(self) -> str:
        """Its merge method."""
        method: str = self.fields["merge"]["method"]
        return method


class _Maker(Protocol):
    """What makes one candidate after the other in the same memory."""

    def __call__(self, candidate: Candidate, /) -> LocalModel: ...


class Candidates:
    """Makes candidates; the latest stay, as many as there is memory for. For one thread at a time.

    Raises
    ------
    InputError, EnvironmentFault
        if the pool's models cannot be merged with each other.

    """

    def __init__(self, pool: Pool, resources: Resources) -> None:
        self.pool = pool
        self._prepared = _prepared(pool, resources)
        self._resources = self._prepared.resources
        self.adapters: AdapterPool | None = _adapters(pool)
        entries = sum(prod(one.shape) for one in self.base.tensors.values())
        self.room = max(1, pool.limits.memory // (entries * _BYTES[pool.dtype]))
        self._held: OrderedDict[str, tuple[str, _Maker, LocalModel]] = OrderedDict()
        self.made = 0

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]:
        """The pool's models, opened."""
        return self._prepared.checkpoints

    @property
    def base(self) -> Checkpoint:
        """The base."""
        return self.checkpoints[self.pool.base]

    @property
    def held(self) -> int:
        """How many are in memory."""
        return len(self._held)

    def checked(self, fields: Mapping[str, Any], owner: str) -> Candidate:
        """Give the candidate of a post.

        Raises
        ------
        InputError
            if it is no merge of the pool's models by its methods and in its ranges.

        """
        said = json.dumps([owner, fields], sort_keys=True)
        candidate = Candidate(f"c-{hashlib.sha256(said.encode()).hexdigest()[:24]}", owner, fields)
        faults = [*self._method_faults(fields["merge"]), *self._range_faults(fields["merge"])]
        if faults:
            raise InputError(*(Problem("merge", fault) for fault in faults[:10]))
        if candidate.method == COMPOSITION:
            self._coefficients(candidate)
        else:
            replanned(self._prepared, self._document(candidate))
        return candidate

    def model(self, candidate: Candidate) -> LocalModel:
        """Give a candidate's model, made now if it is not in memory."""
        if candidate.id in self._held:
            self._held.move_to_end(candidate.id)
            return self._held[candidate.id][2]
        maker = self._maker(COMPOSITION if candidate.method == COMPOSITION else "merge")
        self.made += 1
        model = maker[1](candidate)
        self._held[candidate.id] = (*maker, model)
        return model

    def _maker(self, kind: str) -> tuple[str, _Maker]:
        """Give memory for a candidate: fresh, or that of the one that was not asked longest."""
        if len(self._held) < self.room:
            return kind, self._new_maker(kind)
        _, (old, maker, _) = self._held.popitem(last=False)
        return (kind, maker) if old == kind else (kind, self._new_maker(kind))

    def _new_maker(self, kind: str) -> _Maker:
        if kind == COMPOSITION:
            from mergepipe.lora.composed import ComposedModels

            assert self.adapters is not None, "checked before"
            models = ComposedModels(self.base.folder, self.adapters, "candidate")
            return lambda candidate: models.composed(*self._coefficients(candidate))
        live = LiveModels(self._resources, dtype=self.pool.dtype)

        def merged(candidate: Candidate) -> LocalModel:
            ready = replanned(self._prepared, self._document(candidate))
            return live.merged(ready, ready.plans[-1])

        return merged

    def _document(self, candidate: Candidate) -> Document:
        fields = candidate.fields
        data = {**_recipe(self.pool), "merge": fields["merge"], "seed": fields.get("seed", 0)}
        if fields.get("dtype"):
            data["output"] = {"dtype": fields["dtype"]}
        return Document(Path("candidate"), data, {(): (1, 1)})

    def _method_faults(self, merge: Mapping[str, Any]) -> Iterator[str]:
        if merge == {"method": "linear", "models": {self.pool.base: {}}}:
            return  # the base by itself, with which the others are compared
        methods = [merge.get("method")]
        rules = merge.get("where")
        methods += [r["method"] for r in rules or () if isinstance(r, dict) and r.get("method")]
        for method in methods:
            if not isinstance(method, str):
                yield "names no method"
            elif method not in self.pool.methods:
                hint = did_you_mean(method, self.pool.methods)
                yield f"the method '{method}' is not allowed here{hint}"

    def _range_faults(self, merge: Mapping[str, Any]) -> Iterator[str]:
        """Hold every number below a parameter's name against its range."""
        ranges = self.pool.methods.get(str(merge.get("method")), {})
        for name, number in _numbers(merge, None, ranges):
            low, high = ranges[name]
            if not low <= number <= high:
                yield f"{name} = {number:g} is not in [{low:g}, {high:g}]"

    def _coefficients(self, candidate: Candidate) -> tuple[list[float], list[float]]:
        """Give the shares and factors of a composition, for adapters that are not named 0."""
        merge = candidate.fields["merge"]
        models, problems = merge.get("models"), Problems()
        if self.adapters is None or not isinstance(models, dict):
            raise InputError(Problem("merge.models", "must name adapters of the pool"))
        for extra in sorted(set(merge) - {"method", "models", "base"}):
            problems.add("merge", f"'{COMPOSITION}' has no field '{extra}'")
        for label, said in models.items():
            where = f"merge.models.{label}"
            if label not in self.adapters.labels:
                hint = did_you_mean(label, self.adapters.labels)
                problems.add(where, f"the pool has no such adapter{hint}")
            elif not isinstance(said, dict) or not all(
                key in ("density", "weight") and type(value) in (int, float)
                for key, value in said.items()
            ):
                problems.add(where, "must be {density: NUMBER, weight: NUMBER}")
            elif not 0 <= said.get("density", 1.0) <= 1:
                problems.add(where, "density must be between 0 and 1")
        problems.raise_any()
        named = [models.get(label, {"weight": 0.0}) for label in self.adapters.labels]
        keep = [float(one.get("density", 1.0)) for one in named]
        return keep, [float(one.get("weight", 1.0)) for one in named]


def _numbers(
    data: Any, name: str | None, names: Mapping[str, object]
) -> Iterator[tuple[str, float]]:
    """Give the numbers that stand anywhere below a key of `names`, with that key."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _numbers(value, key if key in names else name, names)
    elif isinstance(data, list):
        for value in data:
            yield from _numbers(value, name, names)
    elif name is not None and type(data) in (int, float):
        yield name, data


def _recipe(pool: Pool) -> dict[str, Any]:
    return {"mergepipe": 1, "models": dict(pool.models)}


def _prepared(pool: Pool, resources: Resources) -> Prepared:
    """Open all of the pool's models, once."""
    data = {**_recipe(pool), "merge": {"method": "linear", "models": {pool.base: {}}}}
    document = Document(pool.file, data, {(): (1, 1)})
    return prepare_merge(document, Problems(), Options(resources=resources))


def _adapters(pool: Pool) -> AdapterPool | None:
    if COMPOSITION not in pool.methods:
        return None
    from mergepipe.lora.composing import open_adapters

    return open_adapters(pool.adapters)
