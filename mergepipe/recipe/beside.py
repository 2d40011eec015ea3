"""`beside:` and `retention:` of a recipe: models that are only asked, and what merges keep."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mergepipe.errors import Problems, did_you_mean
from mergepipe.recipe.document import Document, FieldPath

__all__ = [
    "BesideFields",
    "RetentionFields",
    "RetentionSpec",
    "ServedSpec",
    "read_beside",
    "read_retention",
]

Count: TypeAlias = Annotated[int, Field(ge=1)]
Usd: TypeAlias = Annotated[float, Field(ge=0)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]


class Fields(BaseModel):
    """Fields of these sections; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class PriceFields(Fields):
    """US dollars for a million tokens."""

    prompt: Usd
    generated: Usd


class BudgetFields(Fields):
    """What may be spent in all, retries included."""

    requests: Count | None = None
    tokens: Count | None = None
    usd: Annotated[float, Field(gt=0)] | None = None


class BesideFields(Fields):
    """A model behind an OpenAI-compatible server: it is scored, and never merged."""

    model: Text = Field(description="what the server calls it")
    base_url: Text | None = Field(
        None, description="https://HOST/v1; default: what the environment says for the key"
    )
    key_env: str | None = Field(
        "OPENAI_API_KEY",
        pattern="^[A-Z_][A-Z0-9_]*$",
        description="the environment variable that holds the key; null for none",
    )
    kind: Literal["completions", "chat"] = "completions"
    prefix: str = Field("", description="the text of the token that starts every sequence")
    tokenizer: Text | None = Field(None, description="a folder; for texts beyond `max_length`")
    max_length: Count | None = Field(None, description="tokens that the server scores at once")
    served_as: Text | None = Field(None, description="the name that the server answers under")
    prices: PriceFields | None = None
    budget: BudgetFields | None = None
    only: list[Text] | None = Field(
        None, min_length=1, description="evaluations to ask it; default: all"
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> BesideFields:
        if self.budget is not None and self.budget.usd is not None and self.prices is None:
            raise ValueError("a budget in usd needs `prices`")
        if self.tokenizer is not None and self.max_length is None:
            raise ValueError("`tokenizer` is for texts beyond `max_length`: give both")
        return self


Reference: TypeAlias = Annotated[str | float, Field(union_mode="left_to_right")]


class RetentionFields(Fields):
    """How much of its specialists' skills a merge keeps, and how much of its base's it forgets."""

    domains: Annotated[dict[str, Reference], Field(min_length=1)] = Field(
        description="evaluation: its specialist, or the specialist's score"
    )
    general: dict[str, Reference] = Field(
        default={}, description="evaluation: the base, or the base's score"
    )
    rates: list[str] = Field(
        default=[], description="evaluations that give a share of which lower is better"
    )


@dataclass(frozen=True, slots=True)
class ServedSpec:
    """A model that is only asked; `tokenizer` is a folder, `only` evaluations' names."""

    place: str
    fields: BesideFields
    tokenizer: Path | None
    only: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RetentionSpec:
    """Evaluations with the labels, or the scores, that merges are held against."""

    domains: Mapping[str, str | float]
    general: Mapping[str, str | float] = field(default_factory=dict)
    rates: tuple[str, ...] = ()


def read_beside(
    given: Mapping[str, BesideFields],
    taken: Collection[str],
    evaluations: Collection[str],
    document: Document,
    problems: Problems,
) -> dict[str, ServedSpec]:
    """Give the models by label; `taken` are labels that other models and stages have."""
    found = {}
    for label, fields in given.items():
        path: FieldPath = ("beside", label)
        place = document.where(path)
        if label in taken:
            what = f"'{label}' is the name of another model or stage"
            problems.add(place, what, "choose another label")
        if not evaluations:
            problems.add(place, "there is nothing to ask it", "give `evaluate`")
        only = evaluations if fields.only is None else fields.only
        _check_names(only, evaluations, document, (*path, "only"), problems)
        folder = None if fields.tokenizer is None else document.folder / fields.tokenizer
        if folder is not None and not (folder / "tokenizer.json").is_file():
            problems.add(document.where((*path, "tokenizer")), f"no tokenizer.json in {folder}")
        found[label] = ServedSpec(place, fields, folder, tuple(only))
    return found


def read_retention(
    fields: RetentionFields | None,
    labels: Collection[str],
    evaluations: Collection[str],
    document: Document,
    problems: Problems,
) -> RetentionSpec | None:
    """Give what merges are held against, if it is asked for; `labels` are all that is scored."""
    if fields is None:
        return None
    for section, references in (("domains", fields.domains), ("general", fields.general)):
        for name, reference in references.items():
            path: FieldPath = ("retention", section, name)
            _check_names([name], evaluations, document, path, problems)
            if isinstance(reference, str) and reference not in labels:
                what = f"no model is named '{reference}'{did_you_mean(reference, labels)}"
                problems.add(document.where(path), what)
            elif not isinstance(reference, str) and reference <= 0:
                problems.add(document.where(path), f"a score above 0 is needed, got {reference:g}")
    known = [*fields.domains, *fields.general]
    _check_names(fields.rates, known, document, ("retention", "rates"), problems)
    for name in sorted(fields.domains.keys() & fields.general.keys()):
        what = f"'{name}' is a domain and general"
        problems.add(document.where(("retention", "general", name)), what, "keep one of them")
    return RetentionSpec(dict(fields.domains), dict(fields.general), tuple(fields.rates))


def _check_names(
    names: Collection[str],
    evaluations: Collection[str],
    document: Document,
    path: FieldPath,
    problems: Problems,
) -> None:
    for name in names:
        if name not in evaluations:
            what = f"no evaluation is named '{name}'{did_you_mean(name, evaluations)}"
            problems.add(document.where(path), what)
