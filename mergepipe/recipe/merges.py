"""The merges of a recipe: labels, methods, parameters and rules resolved; stages put in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mergepipe.errors import Problems, did_you_mean
from mergepipe.method import (
    Method,
    load_method,
    method_names,
)
from mergepipe.recipe.document import Document, FieldPath
from mergepipe.recipe.fields import MergeFields, RecipeFields, RuleFields
from mergepipe.recipe.post_steps import read_post_steps
from mergepipe.recipe.settings import Settings, check_settings, field_names
from mergepipe.recipe.slices import read_slice, wrong_number
from mergepipe.recipe.spec import MergeSpec, Rule

__all__ = ["MergeReader"]

# In a `where` rule a label stands beside these. `base` does not stand there, and is a good label.
_FIELDS = (*RuleFields.model_fields, *MergeFields.model_fields)
_KINDS = ("merge", "transplant", "stages", "compare")
_TAKEN = frozenset(_FIELDS) - {"base"}


class MergeReader:
    """Resolves the names of one recipe's merges; holds what every step of that needs.

    `whole` is False where parts of the recipe were left out for their faults.
    """

    def __init__(
        self, document: Document, problems: Problems, fields: RecipeFields, *, whole: bool
    ) -> None:
        self.document, self.problems, self.whole = document, problems, whole
        self.labels = _keys(document.data, "models")
        self.stage_names = _keys(document.data, "stages")
        self.stages: dict[str, tuple[FieldPath, MergeFields]] = {}
        if fields.merge is not None:
            self.stages["merge"] = (("merge",), fields.merge)
        # Transplant -> the model or stage that it is made of.
        self.transplanted: dict[str, str] = {}
        for name, stage in (fields.stages or {}).items():
            if stage.merge is not None:
                self.stages[name] = (("stages", name, "merge"), stage.merge)
            if stage.transplant is not None:
                self.transplanted[name] = stage.transplant.model
            if (stage.merge is None) == (stage.transplant is None):
                what = "give exactly one of `merge:` and `transplant:`"
                problems.add(document.where(("stages", name)), what)
        for name, merge in (fields.compare or {}).items():
            self.stages[name] = (("compare", name), merge)

    def check_label(self, label: str | None, path: FieldPath, extra: Iterable[str] = ()) -> None:
        """Add a problem if `label` is no model, nor one of `extra`."""
        known = (*self.labels, *extra)
        if label is not None and label not in known and self.labels:
            self.problems.add(
                self.document.where(path), f"unknown model '{label}'{did_you_mean(label, known)}"
            )

    def merges(self, results: Mapping[str, MergeSpec]) -> dict[str, MergeSpec]:
        """Give the merges by stage, in order of execution.

        `results` are what write the transplants: one is used if the last stage is a transplant.
        """
        data = self.document.data
        if sum(data.get(field) is not None for field in _KINDS) != 1:
            what = "give exactly one of `merge:`, `transplant:`, `stages:` and `compare:`"
            self.problems.add(self.document.where(()), what)
        for label in self.labels:
            self._check_free(label, ("models", label))
        for name in (*_keys(data, "stages"), *_keys(data, "compare")):
            path = self.stages[name][0] if name in self.stages else ("stages", name)
            self._check_free(name, path)
            if name in self.labels:
                self.problems.add(
                    self.document.where(path),
                    "a model has this name",
                    "rename the stage",
                )
        specs = {name: self._merge(path, f) for name, (path, f) in self.stages.items()}
        last = self.stage_names[-1] if self.stage_names else "transplant"
        if last in results:
            specs[last] = results[last]
        stages = self.whole and data.get("compare") is None
        return self._ordered(specs) if stages else specs

    def _check_free(self, label: str, path: FieldPath) -> None:
        if label in _TAKEN:
            self.problems.add(
                self.document.where(path),
                f"'{label}' is a field of merges and their rules, so no model can be called that",
                "choose another label",
            )

    def _ordered(self, specs: dict[str, MergeSpec]) -> dict[str, MergeSpec]:
        """Put stages after those they use; the last one written is the result."""
        done: dict[str, MergeSpec] = {}
        waiting = dict(specs)
        while waiting:
            ready = [name for name, spec in waiting.items() if not self._needs(spec) & set(waiting)]
            if not ready:
                self.problems.add(
                    self.document.where(("stages",)),
                    f"a cycle: {' uses '.join(self._cycle(waiting))}",
                )
                return done
            for name in ready:
                done[name] = waiting.pop(name)
        if not specs:
            return {}
        *before, result = specs
        used = set().union(*map(self._needs, specs.values()))
        for name in (*before, *(one for one in self.transplanted if one != result)):
            if name not in used:
                self.problems.add(
                    self.document.where(("stages", name)), "no later stage uses this one"
                )
        done[result] = done.pop(result)
        return done

    def _cycle(self, waiting: Mapping[str, MergeSpec]) -> list[str]:
        """Follow stages that all wait for another until one comes again."""
        path = list(waiting)[:1]
        while path.index(path[-1]) == len(path) - 1:
            needed = self._needs(waiting[path[-1]])
            path.append(next(name for name in waiting if name in needed))
        return path[path.index(path[-1]) :]

    def _needs(self, spec: MergeSpec) -> set[str]:
        """Give the labels that a merge uses, those of which its transplants are made too."""
        found, waiting = set[str](), _uses(spec)
        while waiting:
            label = waiting.pop()
            if label not in found and label in self.transplanted:
                waiting.add(self.transplanted[label])
            found.add(label)
        return found

    def _merge(self, path: FieldPath, fields: MergeFields) -> MergeSpec:
        stages = _keys(self.document.data, "stages")
        for label in fields.models:
            self.check_label(label, (*path, "models", label), stages)
        self.check_label(fields.base, (*path, "base"), stages)
        if bool(fields.models) == bool(fields.slices):
            self.problems.add(
                self.document.where(path), "give exactly one of `models:` and `slices:`"
            )
        method = self._method(fields.method, (*path, "method"))
        each: dict[str, Settings] = {label: {} for label in fields.models}
        shared: Settings = {}
        if method is not None:
            shared = self.shared(fields.model_extra or {}, method, path)
            for label, values in fields.models.items():
                each[label] = self.each(values, method, (*path, "models", label))
            if fields.models:
                self._check_models(method, fields, path)
        slices = tuple(
            read_slice(self, one, fields, method, (*path, "slices", i))
            for i, one in enumerate(fields.slices)
        )
        each.update({label: {} for one in slices for label in one.models})
        return MergeSpec(
            place=self.document.where(path),
            method=fields.method,
            base=fields.base,
            models=tuple(each),
            each=each,
            shared=shared,
            rules=tuple(
                self._rule(rule, fields, (*path, "where", i)) for i, rule in enumerate(fields.where)
            ),
            then=read_post_steps(
                fields.then, fields, self.document, (*path, "then"), self.problems
            ),
            slices=slices,
        )

    def _method(self, name: str, path: FieldPath) -> Method[Any, Any] | None:
        if name in method_names():
            return load_method(name)
        self.problems.add(
            self.document.where(path),
            f"unknown method '{name}'{did_you_mean(name, method_names())}",
        )
        return None

    def shared(
        self, values: Mapping[str, Any], method: Method[Any, Any], path: FieldPath
    ) -> Settings:
        """Check a method's parameters for the whole merge, or for a part of it."""
        own = [name for name in values if name in field_names(method.each)]
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

    def each(self, values: object, method: Method[Any, Any], path: FieldPath) -> Settings:
        """Check a method's parameters for one model."""
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
        for label in fields.models:
            if label in field_names(method.shared):
                self.problems.add(
                    self.document.where((*path, "models", label)),
                    f"'{label}' is a parameter of {method.name}, so no model can be called that",
                    "choose another label",
                )
        if method.needs_base and fields.base is None:
            self.problems.add(
                self.document.where(path),
                f"{method.name} needs a base model",
                "add `base: <label>`, the model that the others were fine-tuned from",
            )
        where = self.document.where((*path, "models"))
        if method.uses_base(named=True) and fields.base in fields.models:
            self.problems.add(where, f"'{fields.base}' is the base of {method.name}: list it once")
        wrong = wrong_number(method, tuple(fields.models))
        if wrong:
            self.problems.add(where, wrong)

    def _rule(self, fields: RuleFields, merge: MergeFields, path: FieldPath) -> Rule:
        self.check_label(fields.take, (*path, "take"), _keys(self.document.data, "stages"))
        if fields.take is not None and (fields.method is not None or fields.model_extra):
            self.problems.add(
                self.document.where(path), "`take` copies a tensor: no method or parameters with it"
            )
        method: Method[Any, Any] | None = None
        if fields.method is not None:
            method = self._method(fields.method, (*path, "method"))
        elif merge.method in method_names():
            method = load_method(merge.method)
        each: dict[str, Settings] = {}
        shared: Settings = {}
        if method is not None and fields.take is None:
            each, shared = self._rule_settings(fields, method, merge, path)
            if fields.method is not None and merge.models:
                self._check_models(method, merge, path)
        return Rule(
            place=self.document.where(path),
            globs=tuple(fields.tensors),
            method=fields.method,
            take=fields.take,
            each=each,
            shared=shared,
            then=None
            if fields.then is None
            else read_post_steps(fields.then, merge, self.document, (*path, "then"), self.problems),
        )

    def _rule_settings(
        self, fields: RuleFields, method: Method[Any, Any], merge: MergeFields, path: FieldPath
    ) -> tuple[dict[str, Settings], Settings]:
        """Tell a rule's settings of models from those of the merge."""
        each: dict[str, Settings] = {}
        rest = {}
        labels = (*merge.models, *(label for one in merge.slices for label in one.models))
        for name, value in (fields.model_extra or {}).items():
            if name in labels:
                each[name] = self.each(value, method, (*path, name))
            elif isinstance(value, dict) and "gradient" not in value:
                self.problems.add(
                    self.document.where((*path, name)),
                    f"the merge has no model '{name}'{did_you_mean(name, labels)}",
                )
            else:
                rest[name] = value
        return each, self.shared(rest, method, path)


def _keys(data: Any, field: str) -> tuple[str, ...]:
    """Labels as the recipe gives them, also of parts with faults."""
    return tuple(data[field]) if isinstance(data.get(field), dict) else ()


def _uses(spec: MergeSpec) -> set[str]:
    taken = {rule.take for rule in spec.rules if rule.take is not None}
    bases = {spec.base, *(one.base for one in spec.slices)} - {None}
    return {*spec.models, *taken, *(base for base in bases if base is not None)}
