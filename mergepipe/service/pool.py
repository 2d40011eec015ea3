"""`pool.yaml`: what a service holds, what may be done with it, and how much of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mergepipe.errors import InputError, Problems, did_you_mean, printable
from mergepipe.recipe import Document, as_bytes, parse_models, read_document

__all__ = ["COMPOSITION", "Limits", "Pool", "lone_base", "read_pool"]

COMPOSITION = "lora_composition"  # beside the merge methods: adapters as one adapter
_COMPOSED = frozenset({"density", "weight"})


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


Size = Annotated[int, BeforeValidator(as_bytes)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class Limits(_Fields):
    """How much a client may ask for; bytes, seconds, tokens read and written."""

    requests_per_minute: Count = 600
    tokens_per_day: Count = 100_000_000
    candidates_per_day: Count = 10_000
    body: Annotated[Size, Field(description="bytes of a request")] = 8_000_000
    seconds: Annotated[Seconds, Field(description="to answer a request, waiting included")] = 120.0
    header_seconds: Seconds = 10.0
    waiting: Annotated[Count, Field(description="requests that may wait for the model")] = 32
    memory: Annotated[Size, Field(description="of materialised candidates")] = 4_000_000_000
    max_tokens: Annotated[Count, Field(description="new tokens of a request")] = 512
    items: Annotated[Count, Field(description="texts or pairs of a request")] = 5000
    connections: Count = 200


class _PoolFields(_Fields):
    pool: Literal[1]
    base: str
    models: dict[str, Any]
    methods: dict[str, dict[str, Range] | None] = {}
    load_from: str | None = None
    keys: str | None = None
    hosts: list[str] = []
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool as it was read: `models` as in a recipe, with whole paths.

    With `load_from` nothing is merged: clients load adapters of the base from that folder.
    """

    file: Path
    base: str
    models: Mapping[str, Mapping[str, str]]
    methods: Mapping[str, Mapping[str, tuple[float, float]]]  # method -> parameter -> range
    keys: Path | None
    hosts: tuple[str, ...]
    dtype: str
    limits: Limits
    load_from: Path | None = None

    @property
    def adapters(self) -> dict[str, Path]:
        """The folders of the models that are adapters on the base."""
        return {
            label: Path(one["adapter"])
            for label, one in self.models.items()
            if "adapter" in one and one["path"] == self.models[self.base]["path"]
        }


def read_pool(file: Path) -> Pool:
    """Read a pool; its models are opened elsewhere.

    Raises
    ------
    InputError
        naming every field that is wrong.

    """
    document, problems = read_document(file), Problems()
    problems.found.extend(document.faults)
    try:
        fields = _PoolFields.model_validate(document.data)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            path = tuple(item["loc"])
            message = item["msg"].replace("Input should be", "must be")
            problems.add(document.where(path), f"{message}, got {printable(item['input'], 60)}")
        raise InputError(*problems.found) from None
    _check(fields, document, problems)
    models = _models(document)
    for label in set(fields.models) - set(models):
        problems.add(document.where(("models", label)), "is no model", "give a path")
    problems.raise_any()
    return Pool(
        file=file,
        base=fields.base,
        models=models,
        methods={
            name: {key: (low, high) for key, (low, high) in (ranges or {}).items()}
            for name, ranges in fields.methods.items()
        },
        keys=None if fields.keys is None else document.folder / Path(fields.keys).expanduser(),
        hosts=tuple(host.lower() for host in fields.hosts),
        dtype=fields.dtype,
        limits=fields.limits,
        load_from=None
        if fields.load_from is None
        else document.folder / Path(fields.load_from).expanduser(),
    )


def lone_base(base: Path, folder: Path) -> Pool:
    """Give the pool of one base, for this machine: its adapters are loaded from `folder`."""
    label = base.resolve().name
    models = {label: {"path": str(base.resolve())}}
    return Pool(base, label, models, {}, None, (), "float32", Limits(), folder)


def _check(fields: _PoolFields, document: Document, problems: Problems) -> None:
    from mergepipe.method import method_names

    known = {*method_names(), COMPOSITION}
    for name, ranges in fields.methods.items():
        where = document.where(("methods", name))
        if name not in known:
            problems.add(where, f"no method is named '{name}'{did_you_mean(name, known)}")
        for key, (low, high) in (ranges or {}).items():
            if not low <= high:
                problems.add(where, f"{key}: [{low}, {high}] is empty")
            if name == COMPOSITION and key not in _COMPOSED:
                problems.add(where, f"it has no parameter '{key}'{did_you_mean(key, _COMPOSED)}")
    if bool(fields.methods) == (fields.load_from is not None):
        fix = "`methods` for merges of the pool, `load_from: FOLDER` for adapters that clients load"
        problems.add(document.where(()), "says either `methods` or `load_from`", fix)
    if fields.load_from is not None and len(fields.models) > 1:
        what = "with `load_from` the base is the only model"
        problems.add(document.where(("models",)), what, "put adapters into that folder")
    if fields.base not in fields.models:
        what = f"no model is named '{fields.base}'{did_you_mean(fields.base, fields.models)}"
        problems.add(document.where(("base",)), what)


def _models(document: Document) -> dict[str, dict[str, str]]:
    """Give the models with paths that hold wherever a recipe is; names on the hub stay names."""
    found = {}
    for label, source in parse_models(document).items():
        path = source.hub if source.path is None else str(source.path.resolve())
        revision = f"@{source.revision}" if source.revision else ""
        one = {"path": f"{path}{revision}"}
        adapter = source.adapter_hub if source.adapter is None else str(source.adapter.resolve())
        if adapter:
            one["adapter"] = adapter
        found[label] = one
    return found
