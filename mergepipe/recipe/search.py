"""`search:` of a recipe -> what is tuned by which optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from mergepipe.errors import Problems, did_you_mean
from mergepipe.recipe.document import Document, FieldPath

__all__ = ["GenomeFields", "HalvingFields", "SearchFields", "SearchSpec", "read_search"]


def _as_weights(value: object) -> object:
    """Read a list of names as weights of 1, and one name as a list of it."""
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return dict.fromkeys(names, 1.0)
    return names


Weight = Annotated[float, Field(gt=0)]
Weights = Annotated[
    dict[str, Weight],
    BeforeValidator(_as_weights),
    Field(min_length=1),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {
                    "type": "object",
                    "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
                    "minProperties": 1,
                },
            ]
        }
    ),
]


class Fields(BaseModel):
    """Fields of this section; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class HalvingFields(Fields):
    """Candidates scored on few items first; the best of a batch go on to more."""

    items: int = Field(ge=1, description="of each evaluation, at first")
    keep: float = Field(0.5, gt=0, lt=1, description="the share that goes on to 1/keep times more")


class GenomeFields(Fields):
    """What `preset: mergekit-evolve` gives a gene each, in that tool's words."""

    layer_granularity: int = Field(0, ge=0, description="layers of a group; 0: all are one")
    filters: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="parts of tensor names that get genes of their own"
    )
    smooth: bool = Field(False, description="gradients through the groups' values, not steps")
    allow_negative_weights: bool = False


class SearchFields(Fields):
    """Numbers and choices of the recipe that are tuned: those that hold `{search: ...}`."""

    preset: Literal["lorahub", "mergekit-evolve"] | None = Field(
        None, description="searches what that tool does, unless the recipe gives it a value"
    )
    genome: GenomeFields | None = None
    optimizer: str = Field("NGOpt", min_length=1, description="one of nevergrad's, by name")
    budget: int = Field(100, ge=1, le=1_000_000, description="candidates in all")
    objective: Weights | None = Field(
        None, description="evaluations, maybe with weights; default: all of them"
    )
    minimize: Weights | None = Field(
        None, description="the same, of evaluations that are better when lower"
    )
    pareto: Weights | None = Field(
        None, description="the same, but each for itself: a front of trade-offs is searched for"
    )
    scale: str = Field(
        "plain",
        pattern="^(plain|relative)$",
        description="`relative`: losses are shares of the best input's value",
    )
    penalty: float = Field(0.0, ge=0, description="times the mean |value| of the numbers, is added")
    seed: int = Field(0, ge=0, lt=2**32, description="of the optimiser")
    batch: int | None = Field(
        None, ge=1, le=10_000, description="candidates asked for before any is told"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many candidates that bring nothing new"
    )
    timeout: float | None = Field(None, gt=0, description="seconds for a candidate")
    max_failed_share: float = Field(
        0.5, ge=0, le=1, description="the search gives up above this share of failures"
    )
    halving: HalvingFields | None = None
    finalists: int = Field(5, ge=1, le=1000, description="candidates compared on held-out items")


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """A `search:` section, its evaluations known; `weights` are theirs."""

    place: str
    fields: SearchFields
    weights: Mapping[str, float]


def read_search(
    fields: SearchFields | None,
    names: Sequence[str],
    document: Document,
    problems: Problems,
    *,
    compares: bool,
) -> SearchSpec | None:
    """Give the search of a recipe with evaluations of these names; faults go to `problems`."""
    if fields is None:
        return None
    path: FieldPath = ("search",)
    if compares:
        problems.add(document.where(path), "a comparison is not searched", "leave one of the two")
    if not names:
        problems.add(
            document.where(path), "a search needs something to score on", "give `evaluate`"
        )
    if fields.genome is not None and fields.preset != "mergekit-evolve":
        what = "is for `preset: mergekit-evolve`"
        problems.add(document.where((*path, "genome")), what, "name it, or leave `genome` out")
    said = {
        key: weights
        for key, weights in (
            ("objective", fields.objective),
            ("minimize", fields.minimize),
            ("pareto", fields.pareto),
        )
        if weights is not None
    }
    if len(said) > 1:
        what = f"{' and '.join(said)} say the same thing"
        problems.add(document.where(path), what, "keep one of them")
    key = next(iter(said), "objective")
    weights = said.get(key, dict.fromkeys(names, 1.0))
    for name in weights:
        if name not in names:
            what = f"no evaluation is named '{name}'{did_you_mean(name, names)}"
            problems.add(document.where((*path, key)), what)
    if fields.pareto is not None and len(fields.pareto) < 2:  # noqa: PLR2004
        what = "a front needs two evaluations or more"
        problems.add(document.where((*path, "pareto")), what, "use `objective`")
    return SearchSpec(document.where(path), fields, weights)
