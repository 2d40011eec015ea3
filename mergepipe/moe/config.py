"""The YAML of mergekit-moe, read strictly: which models are experts, and how tokens find them.

Beside mergekit's fields it may have `seed`, `evaluate` and `output`, which mean what they mean in
recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mergepipe.dialect.references import References
from mergepipe.errors import Problems, did_you_mean, has_secret
from mergepipe.recipe import Document, Recipe, parse

__all__ = ["RANDOM", "Expert", "Mixture", "is_moe", "read_mixture"]

GateMode: TypeAlias = Literal[
    "hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"
]
RANDOM = ("random", "uniform_random")  # modes that need no prompts
_RECIPE_FIELDS = ("seed", "evaluate", "output")
_Path: TypeAlias = tuple[str | int, ...]


def _without_prefix(value: object) -> object:
    return value.removeprefix("torch.") if isinstance(value, str) else value


class _Fields(BaseModel):
    # Unknown fields are warned of: mergekit passes over them, and its files must run.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class Expert(_Fields):
    """A model whose MLPs become one expert of every layer."""

    source_model: Any = Field(description="the model")
    positive_prompts: list[str] | None = Field(None, description="texts that it shall be used for")
    negative_prompts: list[str] | None = Field(None, description="texts that it shall not")
    noise_scale: float | None = Field(None, ge=0, description="deviation of noise on its weights")
    residual_scale: float | None = Field(None, description="factor of its output (`down_proj`)")


class _MixtureFields(_Fields):
    base_model: Any = Field(description="all but the MLPs is its")
    experts: Annotated[list[Expert], Field(min_length=1)]
    gate_mode: GateMode = "hidden"
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None, BeforeValidator(_without_prefix)
    ] = None
    experts_per_token: int = Field(2, ge=1, description="experts that see one token")
    shared_experts: list[Expert] | None = Field(None, description="experts that see every token")
    architecture: str | None = Field(None, description="default: the first that fits")


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of experts, its models by label. Everything but the MLPs is the base's."""

    document: Document
    recipe: Recipe  # models, seed, output and evaluations; its merge is not used
    base: str
    labels: tuple[str, ...]  # of the experts, the shared ones last
    experts: tuple[Expert, ...]
    shared: tuple[Expert, ...]
    gate_mode: str
    experts_per_token: int
    architecture: str | None

    @property
    def gated(self) -> tuple[Expert, ...]:
        """All experts, the shared ones last."""
        return (*self.experts, *self.shared)

    def where(self, expert: int) -> str:
        """Give the place of an expert, counted over all."""
        routed = len(self.experts)
        path = ("experts", expert) if expert < routed else ("shared_experts", expert - routed)
        return self.document.where(path)


def is_moe(data: object) -> bool:
    """Tell mergekit-moe's configuration from other recipes, by its top-level fields."""
    return isinstance(data, dict) and {"experts", "base_model"} <= data.keys()


def read_mixture(document: Document, problems: Problems) -> Mixture | None:
    """Check a document; what is wrong goes to `problems`, and then the result may be None."""
    if has_secret(str(document.data)):
        what = "holds what looks like a secret token or key"
        problems.add(document.file.name, what, "keep it in the environment, and revoke it")
    _warn_unknown(document, problems)
    try:
        fields = _MixtureFields.model_validate(document.data)
    except ValidationError as error:
        for item in error.errors():
            what = item["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
            problems.add(document.where(item["loc"]), what)
        return None
    references = References(document, problems)
    base = references.label(fields.base_model, ("base_model",))
    gated = [(("experts", i), one) for i, one in enumerate(fields.experts)]
    gated += [(("shared_experts", i), one) for i, one in enumerate(fields.shared_experts or ())]
    labels = tuple(references.label(one.source_model, (*at, "source_model")) for at, one in gated)
    recipe = _recipe(document, fields, references, base, problems)
    if recipe is None:
        return None
    mixture = Mixture(
        document=document,
        recipe=recipe,
        base=base,
        labels=labels,
        experts=tuple(fields.experts),
        shared=tuple(fields.shared_experts or ()),
        gate_mode=fields.gate_mode,
        experts_per_token=fields.experts_per_token,
        architecture=fields.architecture,
    )
    _check_counts(mixture, problems)
    _check_prompts(mixture, problems)
    return mixture


def _recipe(
    document: Document,
    fields: _MixtureFields,
    references: References,
    base: str,
    problems: Problems,
) -> Recipe | None:
    """Read what a mixture has in common with merges, as that of a recipe."""
    data = {name: document.data[name] for name in _RECIPE_FIELDS if name in document.data}
    output = data.get("output") or {}
    if isinstance(output, dict) and fields.dtype:
        data["output"] = {**output, "dtype": fields.dtype}
    data |= {
        "mergepipe": 1,
        "models": references.models,
        "merge": {"method": "linear", "models": [base]},
    }
    recipe = parse(replace(document, data=data), problems)
    return recipe and replace(recipe, data=document.data)


def _warn_unknown(document: Document, problems: Problems) -> None:
    data = document.data
    _warn_fields(document, (), data, (*_MixtureFields.model_fields, *_RECIPE_FIELDS), problems)
    for part in ("experts", "shared_experts"):
        entries = data.get(part)
        for at, entry in enumerate(entries if isinstance(entries, list) else ()):
            _warn_fields(document, (part, at), entry, tuple(Expert.model_fields), problems)


def _warn_fields(
    document: Document, path: _Path, data: Any, known: tuple[str, ...], problems: Problems
) -> None:
    for name in data if isinstance(data, dict) else ():
        if name not in known:
            what = f"unknown field, which mergekit passes over{did_you_mean(name, known)}"
            problems.warn(document.where((*path, name)), what)


def _check_counts(mixture: Mixture, problems: Problems) -> None:
    count, where = len(mixture.experts), mixture.document.where
    if mixture.experts_per_token > count:
        problems.add(
            where(("experts_per_token",)),
            f"{mixture.experts_per_token} experts a token, but there are {count}",
            "set experts_per_token to at most their number",
        )
    if count & (count - 1):
        what = f"{count} experts are not a power of two, which llama.cpp needs"
        problems.warn(where(("experts",)), what)
    alike = {(label, one.noise_scale, one.residual_scale) for label, one in _routed(mixture)}
    if len(alike) == 1 and not mixture.experts[0].noise_scale:
        what = "all experts are the same model: until it is trained, the result is no better"
        problems.warn(where(("experts",)), what)


def _routed(mixture: Mixture) -> list[tuple[str, Expert]]:
    return list(zip(mixture.labels, mixture.experts, strict=False))


def _check_prompts(mixture: Mixture, problems: Problems) -> None:
    mode, where = mixture.gate_mode, mixture.document.where
    if mode in RANDOM:
        if any(one.positive_prompts or one.negative_prompts for one in mixture.gated):
            problems.warn(where(("gate_mode",)), f"'{mode}' uses no prompts: they change nothing")
        return
    for at, expert in enumerate(mixture.gated):
        if not expert.positive_prompts:
            problems.add(
                mixture.where(at),
                f"no positive_prompts, which gate_mode '{mode}' needs",
                "give texts of the kind that this expert shall be used for",
            )
        elif sorted(expert.positive_prompts) == sorted(expert.negative_prompts or ()):
            what = "its positive and negative prompts are the same, so they cancel out"
            problems.add(mixture.where(at), what, "make them differ")
    _check_distinct(mixture, problems)


def _check_distinct(mixture: Mixture, problems: Problems) -> None:
    """Refuse gates that are all equal, and warn of some that are."""
    said = [(one.positive_prompts, one.negative_prompts or []) for one in mixture.experts]
    if len(said) > 1 and said[0][0] and all(one == said[0] for one in said):
        problems.add(
            mixture.document.where(("experts",)),
            "the prompts of all experts are identical, so nothing tells which one to use",
            "give each expert prompts of its own",
        )
        return
    for at, one in enumerate(said):
        if one[0] and one in said[:at]:
            what = f"its prompts are those of experts.{said.index(one)}, and so is its gate"
            problems.warn(mixture.where(at), what)
