"""Document -> Recipe: every name resolved, every parameter checked against its method."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from mergepipe.checkpoint import ModelSource
from mergepipe.errors import Problems, did_you_mean
from mergepipe.method import Method, load_method, method_names
from mergepipe.recipe.document import Document, FieldPath
from mergepipe.recipe.fields import (
    MergeFields,
    ModelFields,
    OutputFields,
    RecipeFields,
    RuleFields,
    as_path,
    report,
)
from mergepipe.recipe.settings import Settings, check_settings, field_names

__all__ = ["EvaluationSpec", "MergeSpec", "OutputSpec", "Recipe", "Rule", "parse", "parse_models"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rule:
    """A `where` rule: which tensors, and how they differ from the rest of the merge."""

    place: str  # where it stands: `recipe.yaml:9:7`
    globs: tuple[str, ...]
    method: str | None
    take: str | None
    each: Mapping[str, Settings]
    shared: Settings


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

    @property
    def donor(self) -> str:
        """Whose configuration and tensor names the result has: the base's, or the first's."""
        return self.base or self.models[0]


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


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe. `merges` are in order of execution; the last one is the result."""

    file: Path
    sources: Mapping[str, ModelSource]
    merges: Mapping[str, MergeSpec]  # stage name -> merge; a one-stage recipe names it "merge"
    seed: int
    tokenizer: str | None
    chat_template: str | None
    evaluations: tuple[EvaluationSpec, ...]
    output: OutputSpec
    data: Any = field(repr=False, default=None)

    @property
    def result(self) -> str:
        """The name of the last stage."""
        return tuple(self.merges)[-1]


def parse(document: Document, problems: Problems) -> Recipe | None:
    """Check a document; what is wrong goes to `problems`, and then the result may be None."""
    _check_dialect(document, problems)
    try:
        fields = RecipeFields.model_validate(document.data)
    except ValidationError as error:
        report(error, document, (), problems)
        return None
    reader = _Reader(document, problems, fields)
    merges = reader.merges()
    for option, path in (("tokenizer", ()), ("chat_template", ()), ("config", ("output",))):
        owner = fields.output if path else fields
        reader.check_label(getattr(owner, option), (*path, option))
    return Recipe(
        file=document.file,
        sources=reader.sources(),
        merges=merges,
        seed=fields.seed,
        tokenizer=fields.tokenizer,
        chat_template=fields.chat_template,
        evaluations=reader.evaluations(),
        output=reader.output(fields.output),
        data=document.data,
    )


def parse_models(document: Document) -> dict[str, ModelSource]:
    """Give the models of a recipe that may be wrong elsewhere, so that they can be checked too."""
    data = document.data
    named = data.get("models") if isinstance(data, dict) else None
    entry: TypeAdapter[ModelFields] = TypeAdapter(Annotated[ModelFields, BeforeValidator(as_path)])
    sources = {}
    for label, value in named.items() if isinstance(named, dict) else ():
        try:
            fields = entry.validate_python(value)
        except ValidationError:
            continue
        sources[label] = _source(label, fields, document, Problems())
    return {label: source for label, source in sources.items() if source is not None}


def _check_dialect(document: Document, problems: Problems) -> None:
    data = document.data
    if isinstance(data, dict) and "merge_method" in data:
        problems.add(
            document.where(("merge_method",)),
            "this is mergekit's recipe language, which this version does not read yet",
            "`mergepipe init` writes a recipe to start from",
        )


class _Reader:
    """Resolves one recipe's names; holds what every step of that needs."""

    def __init__(self, document: Document, problems: Problems, fields: RecipeFields) -> None:
        self.document, self.problems, self.fields = document, problems, fields
        self.stages: dict[FieldPath, tuple[str, MergeFields]] = {}
        if fields.merge is not None:
            self.stages["merge",] = ("merge", fields.merge)
        for name, stage in (fields.stages or {}).items():
            self.stages["stages", name, "merge"] = (name, stage.merge)

    def sources(self) -> dict[str, ModelSource]:
        found = {}
        places: dict[object, str] = {}
        for label, entry in self.fields.models.items():
            source = _source(label, entry, self.document, self.problems)
            if source is None:
                continue
            same = places.setdefault(_identity(source), label)
            if same != label:
                self.problems.add(
                    self.document.where(("models", label)),
                    f"the same model twice: '{label}' and '{same}' are both {entry.path}",
                    "list it once and give it the sum of the weights",
                )
            found[label] = source
        return found

    def check_label(self, label: str | None, path: FieldPath, extra: Iterable[str] = ()) -> bool:
        known = (*self.fields.models, *extra)
        if label is None or label in known:
            return True
        self.problems.add(
            self.document.where(path), f"unknown model '{label}'{did_you_mean(label, known)}"
        )
        return False

    def merges(self) -> dict[str, MergeSpec]:
        if (self.fields.merge is None) == (self.fields.stages is None):
            self.problems.add(self.document.where(()), "give exactly one of `merge:` and `stages:`")
        specs = {name: self._merge(path, f) for path, (name, f) in self.stages.items()}
        for name in set(specs) & set(self.fields.models):
            self.problems.add(
                self.document.where(("stages", name)), "a model has this name", "rename the stage"
            )
        return self._ordered(specs)

    def _ordered(self, specs: dict[str, MergeSpec]) -> dict[str, MergeSpec]:
        """Put stages after those they use; the last one written is the result."""
        done: dict[str, MergeSpec] = {}
        waiting = dict(specs)
        while waiting:
            ready = [n for n, s in waiting.items() if not (_uses(s) & set(waiting))]
            if not ready:
                self.problems.add(
                    self.document.where(("stages",)),
                    f"the stages {', '.join(waiting)} need each other: a cycle",
                )
                return done
            for name in ready:
                done[name] = waiting.pop(name)
        if specs:
            result = tuple(specs)[-1]
            for name in set(specs) - {result} - set().union(*map(_uses, specs.values())):
                self.problems.add(
                    self.document.where(("stages", name)), "no later stage uses this one"
                )
            done[result] = done.pop(result)
        return done

    def _merge(self, path: FieldPath, fields: MergeFields) -> MergeSpec:
        stages = tuple(name for name, _ in self.stages.values())
        for label in fields.models:
            self.check_label(label, (*path, "models", label), stages)
        self.check_label(fields.base, (*path, "base"), stages)
        method = self._method(fields.method, (*path, "method"))
        each: dict[str, Settings] = {label: {} for label in fields.models}
        shared: Settings = {}
        if method is not None:
            shared = self._settings(fields.model_extra or {}, method, path)
            for label, values in fields.models.items():
                each[label] = self._each(values, method, (*path, "models", label))
            self._check_models(method, fields, path)
        return MergeSpec(
            place=self.document.where(path),
            method=fields.method,
            base=fields.base,
            models=tuple(fields.models),
            each=each,
            shared=shared,
            rules=tuple(
                self._rule(rule, fields, (*path, "where", i)) for i, rule in enumerate(fields.where)
            ),
        )

    def _method(self, name: str, path: FieldPath) -> Method[Any, Any] | None:
        if name in method_names():
            return load_method(name)
        self.problems.add(
            self.document.where(path),
            f"unknown method '{name}'{did_you_mean(name, method_names())}",
        )
        return None

    def _settings(
        self, values: Mapping[str, Any], method: Method[Any, Any], path: FieldPath
    ) -> Settings:
        own = set(field_names(method.each)) & set(values)
        for name in own:
            self.problems.add(
                self.document.where((*path, name)),
                f"'{name}' is given per model in {method.name}",
                f"write it under each model: `models: {{label: {{{name}: ...}}}}`",
            )
        rest = {name: value for name, value in values.items() if name not in own}
        return check_settings(
            rest, method.shared, method.name, (self.document, path), self.problems
        )

    def _each(self, values: object, method: Method[Any, Any], path: FieldPath) -> Settings:
        if values is None:
            return {}
        if not isinstance(values, dict):
            self.problems.add(
                self.document.where(path), "give parameters by name, as in `{weight: 0.5}`"
            )
            return {}
        return check_settings(
            values, method.each, method.name, (self.document, path), self.problems
        )

    def _check_models(self, method: Method[Any, Any], fields: MergeFields, path: FieldPath) -> None:
        where = self.document.where((*path, "models"))
        if method.needs_base and fields.base is None:
            self.problems.add(
                self.document.where(path),
                f"{method.name} needs a base model",
                "add `base: <label>`, the model that the others were fine-tuned from",
            )
        if method.needs_base and fields.base in fields.models:
            self.problems.add(where, f"'{fields.base}' is the base of {method.name}: list it once")
        fewest, most = method.models
        count = len(fields.models)
        if count < fewest or (most is not None and count > most):
            total = most + method.needs_base if most is not None else None
            takes = f"at least {fewest}" if total is None else f"exactly {total}"
            base = " (the base and one other)" if method.needs_base and most == 1 else ""
            names = ", ".join(fields.models)
            self.problems.add(
                where,
                f"{method.name} takes {takes} models{base}; "
                f"got {count + method.needs_base} ({names}{' and the base' * method.needs_base})",
            )

    def _rule(self, rule: RuleFields, merge: MergeFields, path: FieldPath) -> Rule:
        self.check_label(rule.take, (*path, "take"), (name for name, _ in self.stages.values()))
        if rule.take is not None and (rule.method is not None or rule.model_extra):
            self.problems.add(
                self.document.where(path), "`take` copies a tensor: no method or parameters with it"
            )
        name = rule.method or merge.method
        method = self._method(name, (*path, "method")) if rule.method else None
        if method is None and name in method_names():
            method = load_method(name)
        each: dict[str, Settings] = {}
        shared: Settings = {}
        if method is not None and rule.take is None:
            extra = rule.model_extra or {}
            labels = {label: value for label, value in extra.items() if label in merge.models}
            shared = self._settings(
                {name: value for name, value in extra.items() if name not in labels}, method, path
            )
            each = {k: self._each(value, method, (*path, k)) for k, value in labels.items()}
            self._check_models(method, merge, path)
        return Rule(
            place=self.document.where(path),
            globs=tuple(rule.tensors),
            method=rule.method,
            take=rule.take,
            each=each,
            shared=shared,
        )

    def evaluations(self) -> tuple[EvaluationSpec, ...]:
        return tuple(
            EvaluationSpec(
                place=self.document.where(("evaluate", i)),
                use=entry.use,
                name=entry.name or entry.use,
                parameters=entry.model_extra or {},
            )
            for i, entry in enumerate(self.fields.evaluate)
        )

    def output(self, fields: OutputFields) -> OutputSpec:
        size = _bytes(fields.max_shard_size)
        if size is None or size < 1:
            self.problems.add(
                self.document.where(("output", "max_shard_size")),
                f"'{fields.max_shard_size}' is not a size",
                "write bytes, or a number with KB, MB, GB, TB, as in 5GB",
            )
        path = (
            None if fields.path is None else self.document.folder / Path(fields.path).expanduser()
        )
        return OutputSpec(path, fields.dtype, size or 1, fields.config)


def _uses(spec: MergeSpec) -> set[str]:
    taken = {rule.take for rule in spec.rules if rule.take is not None}
    return {*spec.models, *taken} | ({spec.base} if spec.base else set())


def _identity(source: ModelSource) -> object:
    folder = source.path.resolve() if source.path else (source.hub, source.revision)
    adapter = source.adapter.resolve() if source.adapter else source.adapter_hub
    return folder, adapter, source.adapter_revision


def _source(
    label: str, fields: ModelFields, document: Document, problems: Problems
) -> ModelSource | None:
    path, hub, revision = _locate(fields.path, document, ("models", label), problems)
    adapter, adapter_hub, adapter_revision = (
        _locate(fields.adapter, document, ("models", label, "adapter"), problems)
        if fields.adapter
        else (None, None, None)
    )
    if path is None and hub is None:
        return None
    return ModelSource(
        label=label,
        path=path,
        hub=hub,
        revision=revision,
        adapter=adapter,
        adapter_hub=adapter_hub,
        adapter_revision=adapter_revision,
    )


def _locate(
    text: str, document: Document, where: FieldPath, problems: Problems
) -> tuple[Path | None, str | None, str | None]:
    """Tell a folder from a hub name: a folder that exists wins; `./x`, `/x`, `~/x` are folders."""
    if "://" in text or "\0" in text:
        problems.add(
            document.where(where),
            f"'{text}' is not allowed",
            "give a folder, or org/name on the Hugging Face hub",
        )
        return None, None, None
    folder = document.folder / Path(text).expanduser()
    name, _, revision = text.partition("@")
    if folder.exists() or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        return folder, None, None
    return None, name, revision or None


def _bytes(text: int | str) -> int | None:
    """Read a size: `5GB` is 5·10⁹ bytes, `5GiB` 5·2³⁰."""
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        return None
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))
