"""`ensemble:` of a recipe, in place of `models:` and a merge: models mixed by what they answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mergepipe.errors import Problems, did_you_mean, has_secret, printable
from mergepipe.recipe.beside import BesideFields, ServedSpec
from mergepipe.recipe.document import Document, FieldPath
from mergepipe.recipe.fields import Label, ModelFields

__all__ = [
    "EnsembleFields",
    "EnsembleSpec",
    "MemberSpec",
    "as_models",
    "is_ensemble",
    "read_ensemble",
]

_KEY = "ensemble"
# What else a recipe of an ensemble may hold: there are no weights to be merged or stored.
_BESIDE = frozenset({"mergepipe", "evaluate", "search", "output"})
_TAKEN = ("mixture", "uniform")  # names in tables of scores

Weight = Annotated[float, Field(ge=0)]


class LocalFields(ModelFields):
    """A model in this process, with its share."""

    weight: Weight = 1.0


class ServedFields(BesideFields):
    """A model behind an OpenAI-compatible server, with its share."""

    weight: Weight = 1.0
    only: None = None


class EnsembleFields(BaseModel):
    """Models whose next-token distributions are mixed, or whose answers are voted on."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    mix: Literal["tokens", "bytes", "product", "votes"] = Field(
        "tokens", description="what is mixed; docs/ensembles.md"
    )
    switch: float = Field(
        1.0, ge=0, le=1, description="how readily another model takes the turn, token by token"
    )
    answer: str | None = Field(
        None, min_length=1, description="a regular expression: the part of a text that is voted on"
    )
    models: dict[Label, LocalFields | ServedFields] = Field(min_length=2)

    @field_validator("answer")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return value


@dataclass(frozen=True, slots=True)
class MemberSpec:
    """A member's share, and where it is `served` if it is not in this process."""

    weight: float
    served: ServedSpec | None = None


@dataclass(frozen=True, slots=True)
class EnsembleSpec:
    """An ensemble with the weights that its recipe says."""

    mix: Literal["tokens", "bytes", "product", "votes"]
    switch: float
    answer: str | None
    members: Mapping[str, MemberSpec]


def is_ensemble(document: Document) -> bool:
    """Tell whether a recipe is that of an ensemble."""
    return isinstance(document.data, dict) and _KEY in document.data


def read_ensemble(document: Document, problems: Problems) -> EnsembleSpec | None:
    """Check the section, whose searched places hold numbers; faults go to `problems`."""
    data = document.data
    for key in data:
        if key not in _BESIDE | {_KEY}:
            what = f"'{printable(key, 60)}' has no meaning beside an ensemble"
            problems.add(document.where((key,)), what, f"known: {', '.join(sorted(_BESIDE))}")
    section = data[_KEY]
    before = len(problems.found)
    members = dict(_members(section, document, problems))
    try:
        rest = section if isinstance(section, dict) else {}
        checked = {**rest, "models": {label: {"path": "."} for label in rest.get("models") or ()}}
        fields = EnsembleFields.model_validate(checked if rest else section)
    except ValidationError as error:
        _report(error, (_KEY,), EnsembleFields, document, problems)
        return None
    if fields.answer is not None and fields.mix not in {"votes", "tokens"}:
        what = f"nothing is voted on with `mix: {fields.mix}`"
        problems.add(document.where((_KEY, "answer")), what, "leave it out")
    if len(problems.found) > before:
        return None
    _check_together(fields, members, document, problems)
    return EnsembleSpec(fields.mix, fields.switch, fields.answer, members)


def _members(
    section: Any, document: Document, problems: Problems
) -> Iterator[tuple[str, MemberSpec]]:
    """Read the models, each by the fields of its kind."""
    models = section.get("models") if isinstance(section, dict) else None
    for label, entry in models.items() if isinstance(models, dict) else ():
        path: FieldPath = (_KEY, "models", label)
        if label in _TAKEN:
            what = f"'{label}' is a name in tables of scores"
            problems.add(document.where(path), what, "choose another label")
        said = {"path": entry} if isinstance(entry, str) else entry
        for key, value in said.items() if isinstance(said, dict) else ():
            if has_secret(f"{key} {value}"):
                what = "holds what looks like a secret token or key"
                fix = "keep it in the environment: `key_env` names the variable"
                problems.add(document.where((*path, key)), what, fix)
        served = isinstance(said, dict) and "model" in said
        kind: type[LocalFields | ServedFields] = ServedFields if served else LocalFields
        try:
            fields = kind.model_validate(said)
        except ValidationError as error:
            _report(error, path, kind, document, problems)
            continue
        place = document.where(path)
        found = MemberSpec(fields.weight)
        if isinstance(fields, ServedFields):
            folder = fields.tokenizer and document.folder / fields.tokenizer
            if folder and not (folder / "tokenizer.json").is_file():
                problems.add(document.where((*path, "tokenizer")), f"no tokenizer.json in {folder}")
            found = MemberSpec(fields.weight, ServedSpec(place, fields, folder or None, ()))
        yield label, found


def _check_together(
    fields: EnsembleFields,
    members: Mapping[str, MemberSpec],
    document: Document,
    problems: Problems,
) -> None:
    for label, one in members.items():
        place = document.where((_KEY, "models", label))
        if one.served is not None and fields.mix in {"bytes", "product"}:
            what = f"`mix: {fields.mix}` needs whole distributions, which no server gives"
            problems.add(place, what, "mix by `tokens` (log-probabilities of texts) or `votes`")
        if one.served is not None and one.served.fields.kind == "chat" and fields.mix == "tokens":
            what = "a chat server gives no log-probabilities of texts"
            problems.add(place, what, "mix answers: `mix: votes`")


def as_models(document: Document) -> Document:
    """Give a recipe of an ensemble as one with models and a merge of them, for all else it says."""
    data = {key: value for key, value in document.data.items() if key in _BESIDE}
    section = document.data[_KEY]
    models: dict[str, Any] = {}
    for label, entry in section["models"].items():
        said = {"path": entry} if isinstance(entry, str) else entry
        kept = {key: said[key] for key in ("path", "adapter") if key in said}
        models[label] = kept or {"path": f"./server/{label}"}
    merge = {"method": "linear", "models": list(models)}
    origins = {("models",): (_KEY, "models"), ("merge",): (_KEY,), **document.origins}
    return replace(document, data={**data, "models": models, "merge": merge}, origins=origins)


def _report(
    error: ValidationError,
    path: FieldPath,
    fields: type[BaseModel],
    document: Document,
    problems: Problems,
) -> None:
    for item in error.errors(include_url=False):
        where = document.where((*path, *item["loc"]))
        if item["type"] == "extra_forbidden":
            name = str(item["loc"][-1])
            problems.add(where, f"unknown field{did_you_mean(name, fields.model_fields)}")
        elif item["type"] == "missing":
            problems.add(where, "required, but missing")
        else:
            message = item["msg"].replace("Input should be", "must be").replace("Value error, ", "")
            problems.add(where, f"{message}, got {printable(repr(item['input']), 60)}")
