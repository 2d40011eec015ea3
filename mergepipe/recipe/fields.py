"""The shape of a recipe, for validation and for editors (`mergepipe schema`).

Fields that a merge method defines (`weight`, `density`, `lambda` ...) are let through here and
checked against the method in `mergepipe.recipe.settings`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from mergepipe.evaluate import MAX_ERROR_RATE
from mergepipe.recipe.beside import BesideFields, RetentionFields
from mergepipe.recipe.publish import PublishFields
from mergepipe.recipe.search import SearchFields
from mergepipe.recipe.sizes import as_bytes
from mergepipe.recipe.spec import NanPolicy
from mergepipe.transplant.options import SpecialRow, UnownedRow

__all__ = [
    "EvaluateFields",
    "Label",
    "MergeFields",
    "ModelFields",
    "OutputFields",
    "RecipeFields",
    "RuleFields",
    "SliceFields",
    "StageFields",
    "TokenizerFields",
    "TransplantFields",
    "as_bytes",
    "as_path",
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
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        return value
    twice = [label for at, label in enumerate(value) if label in value[:at]]
    if twice:
        raise ValueError(f"'{twice[0]}' is listed twice: list it once and give it more weight")
    return dict.fromkeys(value)


def _as_layers(value: object) -> object:
    """Read `[0, 8]` as those layers."""
    return {"layers": value} if isinstance(value, list) else value


def _as_whole(value: object) -> object:
    """Let 1 through, but neither `true` nor 1.0, which equal it."""
    if type(value) is not int:
        raise ValueError("must be 1, a whole number")
    return value


Label: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]
Size: TypeAlias = Annotated[
    int, BeforeValidator(as_bytes), WithJsonSchema({"type": ["integer", "string"]})
]
DTypeName: TypeAlias = Literal["bfloat16", "float16", "float32"]


class ModelFields(Fields):
    """A model: a folder relative to the recipe, or `org/name` on the hub, `@revision`."""

    path: Text = Field(description="a folder or a weight file, or org/name@revision on the hub")
    adapter: Text | None = Field(None, description="a PEFT LoRA adapter to apply to it")


class RuleFields(OpenFields):
    """Tensors that are merged in another way; the first rule that fits a tensor is used."""

    tensors: Annotated[list[Text], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        description="globs over tensor names"
    )
    method: str | None = Field(None, description="another method for these tensors")
    take: Label | None = Field(None, description="copy these tensors from this model")
    then: list[str | dict[str, dict[str, Any] | None]] | None = Field(
        None, description="other post-steps for these tensors"
    )


class SliceModelFields(OpenFields):
    """A model's layers in a slice, and the method's parameters for it there."""

    layers: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(
        description="the first layer, and the one behind the last"
    )


class SliceFields(OpenFields):
    """A run of layers of the result, and what it is made of."""

    models: Annotated[
        dict[Label, Annotated[SliceModelFields, BeforeValidator(_as_layers)]], Field(min_length=1)
    ]
    base: Label | None = Field(None, description="another base for these layers")


class MergeFields(OpenFields):
    """A merge: its method, base, models, and the method's parameters."""

    method: str
    base: Label | None = Field(None, description="the model that the others were fine-tuned from")
    models: Annotated[
        dict[Label, dict[str, Any] | None], BeforeValidator(_as_mapping), Field(min_length=1)
    ] = Field(default_factory=dict)
    slices: Annotated[list[SliceFields], Field(min_length=1)] = Field(
        default_factory=list, description="in place of `models`: layers put together"
    )
    where: list[RuleFields] = Field(
        [], description="exceptions by the names of tensors; the first that fits"
    )
    then: list[str | dict[str, dict[str, Any] | None]] = Field(
        default=[], description="post-steps: `- lines` or `- lines: {beta: 0.5}`"
    )


class TransplantFields(OpenFields):
    """A model that gets another tokenizer, and how; the method's parameters stand beside."""

    model: Label = Field(description="the model that gets another tokenizer")
    tokenizer: Text = Field(description="the model, or the folder, whose tokenizer it gets")
    method: str
    roles: dict[str, str] = Field(
        default={}, description="special tokens of that tokenizer: which tokens of the model's"
    )
    byte: bool = Field(True, description="match single bytes, however they are spelled")
    fuzzy: bool = Field(False, description="match tokens but for case and a leading space")
    prefix: bool = Field(False, description="match the longest token that a token begins with")
    special_fallback: SpecialRow = Field(
        "special", description="rows of special tokens without a match: the mean of special ones"
    )
    junk: UnownedRow = Field("mean", description="rows that belong to no token")
    pad_to_multiple_of: int | None = Field(
        None, ge=1, le=2**20, description="rows; default: as many as the tokenizer's model has"
    )
    strict: bool = Field(False, description="refuse tokenizers that cut numbers in other ways")
    translations: dict[str, Text] = Field(
        default={}, description="files of one text by language, line by line: what each costs"
    )


class StageFields(Fields):
    """One stage of several; other stages use its result by its name."""

    merge: MergeFields | None = Field(None, description="a merge, of models and earlier stages")
    transplant: TransplantFields | None = Field(None, description="another tokenizer for a model")


class SplitFields(Fields):
    """Items shared out by the hashes of their ids: the rest is for the final report."""

    search: int = Field(ge=1, description="items that a search may see")
    holdout: int = Field(ge=1, description="others, to choose among what it found")
    seed: int = Field(0, ge=0, description="another seed shares them out anew")


class EvaluateFields(OpenFields):
    """An evaluator and its parameters."""

    use: str = Field(description="the evaluator; `mergepipe evaluators` lists them")
    name: Label | None = Field(None, description="heading in the table; default: the evaluator's")
    limit: int | None = Field(None, ge=1, description="score the first so many items")
    split: SplitFields | None = Field(None, description="parts that share no item")
    max_error_rate: float = Field(
        MAX_ERROR_RATE,
        ge=0,
        le=1,
        description="above this share of items that a server or judge failed on, no result",
    )


class OutputFields(Fields):
    """Where the checkpoint goes, and how it is stored."""

    path: Text | None = Field(None, description="a folder; `--out` overrides it")
    dtype: DTypeName | None = Field(None, description="default: as in the base, tensor by tensor")
    max_shard_size: Size = Field(
        5_000_000_000, description="bytes, or a number with KB, MB, GB, TB; default: 5GB"
    )
    config: Label | None = Field(None, description="whose config.json; default: the base's")


class TemplateFields(Fields):
    """A chat template that is none of the models'."""

    jinja: Text = Field(description="the text of the template")


def _as_source(value: object) -> object:
    """Read `tokenizer: math` as the tokenizer of that model."""
    return {"source": value} if isinstance(value, str) else value


def _as_zero(value: object) -> object:
    return {"zero": True} if value == "zero" else value


class TokenFields(Fields):
    """Where the row of a token comes from in models that lack it: a model, or zeros."""

    take: Label | None = Field(None, description="the model whose row of this token it is")
    token: Text | None = Field(None, description="take the row of another token of that model")
    id: int | None = Field(None, ge=0, description="take that row of the model")
    zero: bool = Field(False, description="a row of zeros")
    force: bool = Field(False, description="use it also in models that have the token")


class TokenizerFields(Fields):
    """The vocabulary of the result; embeddings and heads are aligned with it by token."""

    source: Label = Field(
        "union", description="a model, or `union`: the base's and what others add"
    )
    tokens: dict[str, Annotated[TokenFields, BeforeValidator(_as_zero)]] = Field(
        default={}, description="rows of single tokens; unknown tokens are added"
    )
    pad_to_multiple_of: int = Field(1, ge=1, le=2**20, description="rows of the embedding")
    allow_ordinary_union: bool = Field(
        False, description="unite tokenizers that differ in more than special tokens"
    )


class RecipeFields(Fields):
    """A recipe: the models, the merge or the stages, and what to do with the result."""

    mergepipe: Annotated[Literal[1], BeforeValidator(_as_whole)] = Field(
        description="version of the recipe language"
    )
    models: Annotated[
        dict[Label, Annotated[ModelFields, BeforeValidator(as_path)]], Field(min_length=1)
    ]
    merge: MergeFields | None = Field(None, description="one merge")
    transplant: TransplantFields | None = Field(
        None, description="in its place, another tokenizer for a model"
    )
    stages: dict[Label, StageFields] | None = Field(
        None, min_length=1, description="several, by name; later ones use earlier ones"
    )
    compare: dict[Label, MergeFields] | None = Field(
        None, min_length=1, description="merges to be scored side by side; none is kept"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="for methods that draw random numbers")
    nan_policy: NanPolicy = Field(
        "refuse",
        description="a tensor with NaN or infinity: refuse it, keep the base's, or allow it",
    )
    tokenizer: Annotated[TokenizerFields, BeforeValidator(_as_source)] | None = Field(
        None, description="whose tokenizer, or `union`; default: the base's"
    )
    chat_template: Label | TemplateFields | None = Field(
        None, description="whose chat template, or its text; default: as above"
    )
    compat: Literal["mergekit-0.1.4"] | None = Field(
        None,
        description="merge tensors of other shapes as mergekit 0.1.4 does: common rows of "
        "vocabularies; others are left out",
    )
    evaluate: list[EvaluateFields] = Field([], description="what scores the inputs and the result")
    beside: dict[Label, BesideFields] = Field(default={}, description="scored too, never merged")
    retention: RetentionFields | None = Field(None, description="how much of each skill is kept")
    search: SearchFields | None = Field(None, description="tunes what holds `{search: ...}`")
    output: OutputFields = Field(
        default_factory=OutputFields.model_construct, description="where the result goes"
    )
    publish: PublishFields | None = Field(None, description="where it is published to")
