"""What a recipe says, once every name is resolved and every parameter checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mergepipe.checkpoint import ModelSource
from mergepipe.evaluate import MAX_ERROR_RATE, Split
from mergepipe.recipe.beside import RetentionSpec, ServedSpec
from mergepipe.recipe.publish import PublishSpec
from mergepipe.recipe.search import SearchSpec
from mergepipe.recipe.settings import Settings
from mergepipe.tokenizer import TokenizerChoice
from mergepipe.transplant import Parameters
from mergepipe.transplant.options import Options

__all__ = [
    "EvaluationSpec",
    "MergeSpec",
    "NanPolicy",
    "OutputSpec",
    "PostStep",
    "Recipe",
    "Rule",
    "Slice",
    "TransplantSpec",
]

NanPolicy: TypeAlias = Literal["refuse", "base", "allow"]


@dataclass(frozen=True, slots=True)
class PostStep:
    """What follows a merge: its name and parameters."""

    name: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class Rule:
    """A `where` rule: which tensors, and how they differ from the rest of the merge."""

    place: str  # where it stands: `recipe.yaml:9:7`
    globs: tuple[str, ...]
    method: str | None
    take: str | None
    each: Mapping[str, Settings]
    shared: Settings
    then: tuple[PostStep, ...] | None = None  # None: as in the merge


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of layers of the result, and the layers of each model it is made of."""

    place: str
    base: str | None
    models: tuple[str, ...]
    layers: Mapping[str, tuple[int, int]]  # of the models and the base: first, end
    each: Mapping[str, Settings]
    shared: Settings

    @property
    def size(self) -> int:
        """How many layers it adds to the result."""
        first, end = next(iter(self.layers.values()))
        return end - first


@dataclass(frozen=True, slots=True)
class MergeSpec:
    """One merge: a method over labelled models (or earlier stages)."""

    place: str
    method: str
    base: str | None
    models: tuple[str, ...]
    each: Mapping[str, Settings]
    shared: Settings
    rules: tuple[Rule, ...]
    then: tuple[PostStep, ...] = ()
    slices: tuple[Slice, ...] = ()  # none: all layers, each with its like

    @property
    def donor(self) -> str:
        """Whose configuration and tensor names the result has: the base's, or the first's."""
        return self.base or self.models[0]


@dataclass(frozen=True, slots=True)
class TransplantSpec:
    """A model that gets another tokenizer: a model's, or one that is alone in `folder`."""

    place: str
    model: str
    donor: str | None
    folder: Path | None
    method: str
    parameters: Parameters | None  # None where they have faults
    options: Options
    translations: Mapping[str, Path] = field(default_factory=dict)  # by language


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Where the checkpoint goes, and how it is stored."""

    path: Path | None
    dtype: str | None
    max_shard_bytes: int
    config: str | None


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """An entry of `evaluate:`, still to be checked by its evaluator."""

    place: str
    use: str
    name: str
    parameters: Mapping[str, Any]
    limit: int | None = None
    split: Split | None = None
    max_error_rate: float = MAX_ERROR_RATE


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe. `merges` are in order of execution; the last one is the result."""

    file: Path
    sources: Mapping[str, ModelSource]
    merges: Mapping[str, MergeSpec]  # stage name -> merge; a one-stage recipe names it "merge"
    compares: bool  # the merges are alternatives, not stages
    seed: int
    nan_policy: NanPolicy
    tokenizer: TokenizerChoice | None
    chat_template: str | None  # a model's label
    evaluations: tuple[EvaluationSpec, ...]
    output: OutputSpec
    data: Any = field(repr=False, default=None)
    compat: str | None = None  # whose rules hold for tensors of other shapes
    jinja: str | None = None  # the text of a chat template that is none of the models'
    transplants: Mapping[str, TransplantSpec] = field(default_factory=dict)  # by stage
    search: SearchSpec | None = None
    beside: Mapping[str, ServedSpec] = field(default_factory=dict)  # only asked
    retention: RetentionSpec | None = None
    publish: PublishSpec | None = None

    @property
    def result(self) -> str:
        """The name of the last stage."""
        return tuple(self.merges)[-1]
