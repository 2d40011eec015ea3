"""The shape of a recipe, for validation and for editors (`mergepipe schema`).

Fields that a merge method defines (`weight`, `density`, `lambda` ...) are let through here and
checked against the method in `mergepipe.recipe.settings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mergepipe.errors import Problems, did_you_mean, printable
from mergepipe.recipe.document import Document, FieldPath

__all__ = [
    "EvaluateFields",
    "Label",
    "MergeFields",
    "ModelFields",
    "OutputFields",
    "RecipeFields",
    "RuleFields",
    "StageFields",
    "as_path",
    "report",
]


class Fields(BaseModel):
    """Fields of a part of a recipe; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class OpenFields(Fields):
    """Fields beside which a method or an evaluator defines more."""

    model_config = ConfigDict(extra="allow")


def as_path(value: object) -> object:
    """Read a model given as a string as its path."""
    return {"path": value} if isinstance(value, str) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_mapping(value: object) -> object:
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        return dict.fromkeys(value)
    return value


Label: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]
DTypeName: TypeAlias = Literal["bfloat16", "float16", "float32"]


class ModelFields(Fields):
    """A model: a folder relative to the recipe, or `org/name` on the hub, `@revision`."""

    path: Text
    adapter: Text | None = Field(None, description="a PEFT LoRA adapter to apply to it")


class RuleFields(OpenFields):
    """Tensors that are merged in another way; the first rule that fits a tensor is used."""

    tensors: Annotated[list[Text], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        description="globs over tensor names"
    )
    method: str | None = Field(None, description="another method for these tensors")
    take: Label | None = Field(None, description="copy these tensors from this model")


class MergeFields(OpenFields):
    """A merge: its method, base, models, and the method's parameters."""

    method: str
    base: Label | None = None
    models: Annotated[
        dict[Label, dict[str, Any] | None], BeforeValidator(_as_mapping), Field(min_length=1)
    ]
    where: list[RuleFields] = []


class StageFields(Fields):
    """One stage of several; other stages use its result by its name."""

    merge: MergeFields


class EvaluateFields(OpenFields):
    """An evaluator and its parameters."""

    use: str
    name: Label | None = Field(None, description="heading in the table; default: the evaluator's")


class OutputFields(Fields):
    """Where the checkpoint goes, and how it is stored."""

    path: Text | None = Field(None, description="a folder; `--out` overrides it")
    dtype: DTypeName | None = Field(None, description="default: as in the base, tensor by tensor")
    max_shard_size: int | str = Field("5GB", description="bytes, or a number with KB, MB, GB, TB")
    config: Label | None = Field(None, description="whose config.json; default: the base's")


class RecipeFields(Fields):
    """A recipe: the models, the merge or the stages, and what to do with the result."""

    mergepipe: Literal[1] = Field(description="version of the recipe language")
    models: Annotated[
        dict[Label, Annotated[ModelFields, BeforeValidator(as_path)]], Field(min_length=1)
    ]
    merge: MergeFields | None = None
    stages: dict[Label, StageFields] | None = Field(None, min_length=1)
    seed: int = Field(0, ge=0, description="for methods that draw random numbers")
    tokenizer: Label | None = Field(None, description="whose tokenizer files; default: the base's")
    chat_template: Label | None = Field(None, description="whose chat template; default: as above")
    evaluate: list[EvaluateFields] = []
    output: OutputFields = Field(default_factory=OutputFields.model_construct)


def report(error: ValidationError, document: Document, root: FieldPath, problems: Problems) -> None:
    """Turn pydantic's errors into problems with a line, the field, and what to write."""
    for item in error.errors(include_url=False):
        # A key that is wrong itself (a label) is reported as [..., key, "[key]"].
        path = (*root, *(part for part in item["loc"] if part != "[key]"))
        problems.add(document.where(path), *_explain(item, path))


def _explain(item: Any, path: FieldPath) -> tuple[str, str]:
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        return f"unknown field{did_you_mean(str(path[-1]), _known(path))}", ""
    if kind == "missing":
        return "required, but missing", ""
    if kind == "too_short":
        return "empty: give at least one", ""
    message = item["msg"].replace("Input should be", "must be")
    return f"{message}, got {_shown(value)}", ""


def _shown(value: object) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (a bool)"
    if isinstance(value, str):
        return f"'{printable(value, 60)}' (text)"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return printable(value, 60)


_INSIDE: dict[str, type[Fields]] = {
    "merge": MergeFields,
    "output": OutputFields,
    "where": RuleFields,
    "models": ModelFields,
    "stages": StageFields,
    "evaluate": EvaluateFields,
}


def _known(path: FieldPath) -> Iterator[str]:
    """Give the fields that could stand where the last part of `path` stands."""
    names = [part for part in path[:-1] if isinstance(part, str) and part in _INSIDE]
    return iter((_INSIDE[names[-1]] if names else RecipeFields).model_fields)
