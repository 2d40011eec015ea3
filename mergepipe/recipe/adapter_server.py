"""`adapter_server:` of a recipe: LoRA adapters merged here, loaded and asked on a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergepipe.errors import Problems, did_you_mean, printable
from mergepipe.recipe.beside import BesideFields, ServedSpec
from mergepipe.recipe.document import Document, FieldPath
from mergepipe.recipe.sources import folder_path

__all__ = [
    "AdapterServerFields",
    "AdapterServerSpec",
    "CompositionSpec",
    "has_adapter_server",
    "read_adapter_server",
    "rest_of",
]

_KEY = "adapter_server"
# What else such a recipe may hold: only adapters are here, so no whole model can be made.
_BESIDE = frozenset({"mergepipe", "models", "merge", "evaluate", "search", "output"})
_BASE = "base"  # the server's model by itself, in tables of scores
_METHODS = ("lora_composition", "lora_sum")

Share = Annotated[float, Field(ge=0, le=1)]


class AdapterServerFields(BesideFields):
    """A server that loads LoRA adapters at run time, and how it is given them."""

    model: str = Field(min_length=1, description="what it calls the base, without an adapter")
    folder: str = Field(min_length=1, description="where candidates are put for it to read")
    seen_as: str | None = Field(
        None, min_length=1, description="that folder as the server sees it; default: the same path"
    )
    loaded: int = Field(2, ge=1, description="candidates that stay loaded, the latest asked")
    only: None = None


class _Each(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    weight: float = 1.0


class _Thinned(_Each):
    density: Share = 1.0


class _Composition(BaseModel):
    """One adapter of their rank: A = Σ w S(A, density), B = Σ w B."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    method: Literal["lora_composition"]
    models: dict[str, _Thinned] = Field(min_length=1)


class _Sum(BaseModel):
    """The sum of their updates, exact or of a lower rank."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    method: Literal["lora_sum"]
    models: dict[str, _Each] = Field(min_length=1)
    rank: int | None = Field(None, ge=1)


@dataclass(frozen=True, slots=True)
class CompositionSpec:
    """Adapters as one adapter: factors and, of a composition, the shares of A that are kept."""

    method: Literal["lora_composition", "lora_sum"]
    weights: Mapping[str, float]
    densities: Mapping[str, float]
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterServerSpec:
    """Where candidates go, and what the first one is made of."""

    served: ServedSpec
    folder: Path
    seen_as: str
    loaded: int
    merge: CompositionSpec


def has_adapter_server(document: Document) -> bool:
    """Tell whether a recipe's candidates are asked on such a server."""
    return isinstance(document.data, dict) and _KEY in document.data


def read_adapter_server(document: Document, problems: Problems) -> AdapterServerSpec | None:
    """Check the section and the merge, whose searched places hold numbers."""
    data, before = document.data, len(problems.found)
    for key in data:
        if key not in _BESIDE | {_KEY}:
            what = f"'{printable(key, 60)}' has no meaning beside an adapter server"
            problems.add(document.where((key,)), what, f"known: {', '.join(sorted(_BESIDE))}")
    fields = _checked(AdapterServerFields, data[_KEY], (_KEY,), document, problems)
    merge = _merge(document, problems)
    if not isinstance(fields, AdapterServerFields) or merge is None:
        return None
    folder = folder_path(fields.folder, document, (_KEY, "folder"), problems)
    tokenizer = None if fields.tokenizer is None else document.folder / fields.tokenizer
    if tokenizer is not None and not (tokenizer / "tokenizer.json").is_file():
        problems.add(document.where((_KEY, "tokenizer")), f"no tokenizer.json in {tokenizer}")
    if folder is None or len(problems.found) > before:
        return None
    served = ServedSpec(document.where((_KEY,)), fields, tokenizer, ())
    seen_as = fields.seen_as or str(folder.resolve())
    return AdapterServerSpec(served, folder, seen_as, fields.loaded, merge)


def _merge(document: Document, problems: Problems) -> CompositionSpec | None:
    """Read `merge:`, and hold its names against `models:`."""
    said, path = document.data.get("merge"), ("merge",)
    method = said.get("method") if isinstance(said, dict) else None
    if method not in _METHODS:
        named = f"'{printable(method, 60)}' is none" if method else "names no method"
        what = f"{named}: adapters for a server are merged by {' or '.join(_METHODS)}"
        problems.add(document.where(("merge", "method")), what)
        return None
    models = said.get("models")
    if isinstance(models, list):
        models = {label: {} for label in models if isinstance(label, str)}
    if isinstance(models, dict):
        said = {**said, "models": {label: one or {} for label, one in models.items()}}
    kind: type[BaseModel] = _Composition if method == "lora_composition" else _Sum
    fields = _checked(kind, said, path, document, problems)
    _check_labels(models, document, problems)
    if isinstance(fields, _Composition):
        densities = {label: one.density for label, one in fields.models.items()}
        weights = {label: one.weight for label, one in fields.models.items()}
        return CompositionSpec("lora_composition", weights, densities)
    if isinstance(fields, _Sum):
        weights = {label: one.weight for label, one in fields.models.items()}
        return CompositionSpec("lora_sum", weights, {}, fields.rank)
    return None


def _check_labels(models: Any, document: Document, problems: Problems) -> None:
    known = document.data.get("models")
    known = known if isinstance(known, dict) else {}
    if _BASE in known:
        what = f"'{_BASE}' is the server's model without an adapter"
        problems.add(document.where(("models", _BASE)), what, "choose another label")
    for label in models if isinstance(models, dict) else ():
        if label not in known:
            what = f"no adapter is named '{printable(label, 60)}'{did_you_mean(label, known)}"
            problems.add(document.where(("merge", "models", label)), what)


def rest_of(document: Document) -> Document:
    """Give such a recipe as one with a merge of models, for all else that it says."""
    data = {key: value for key, value in document.data.items() if key in _BESIDE}
    models = data.get("models")
    merge = {"method": "linear", "models": list(models) if isinstance(models, dict) else []}
    origins = {("merge",): ("merge",), **document.origins}
    return replace(document, data={**data, "merge": merge}, origins=origins, faults=())


def _checked(
    kind: type[BaseModel], data: Any, path: FieldPath, document: Document, problems: Problems
) -> BaseModel | None:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        for where, what in _faults(error, kind):
            problems.add(document.where((*path, *where)), what)
        return None


def _faults(error: ValidationError, kind: type[BaseModel]) -> Iterator[tuple[FieldPath, str]]:
    for item in error.errors(include_url=False):
        where = tuple(item["loc"])
        if item["type"] == "extra_forbidden":
            known = kind.model_fields if len(where) == 1 else _Thinned.model_fields
            yield where, f"unknown field{did_you_mean(str(where[-1]), known)}"
        elif item["type"] == "missing":
            yield where, "required, but missing"
        else:
            message = item["msg"].replace("Input should be", "must be").replace("Value error, ", "")
            yield where, f"{message}, got {printable(repr(item['input']), 60)}"
