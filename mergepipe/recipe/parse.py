"""Document -> Recipe: every name resolved, every parameter checked against its method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from mergepipe.errors import Problems, has_secret
from mergepipe.recipe.document import Document, FieldPath
from mergepipe.recipe.fields import EvaluateFields, OutputFields, RecipeFields, read_fields
from mergepipe.recipe.merges import MergeReader
from mergepipe.recipe.sources import folder_path, read_sources
from mergepipe.recipe.spec import EvaluationSpec, OutputSpec, Recipe

__all__ = ["parse", "parse_evaluations"]


def parse(document: Document, problems: Problems) -> Recipe | None:
    """Check a document; what is wrong goes to `problems`, and then the result may be None.

    A fault in one part does not keep the other parts from being checked.
    """
    problems.found.extend(document.faults)
    _check_secrets(document, problems)
    fields, whole = read_fields(document, problems)
    if fields is None:
        return None
    reader = MergeReader(document, problems, fields, whole=whole)
    merges = reader.merges()
    reader.check_label(fields.tokenizer, ("tokenizer",))
    template = fields.chat_template
    if isinstance(template, str):
        reader.check_label(template, ("chat_template",))
    reader.check_label(fields.output.config, ("output", "config"))
    sources = read_sources(fields.models, document, problems)
    evaluations = _evaluations(fields, document, problems)
    output = _output(fields.output, document, problems)
    _check_nan_policy(fields, document, problems)
    if not whole:
        return None
    return Recipe(
        file=document.file,
        sources=sources,
        merges=merges,
        compares=fields.compare is not None,
        seed=fields.seed,
        nan_policy=fields.nan_policy,
        tokenizer=fields.tokenizer,
        chat_template=template if isinstance(template, str) else None,
        jinja=None if isinstance(template, str | None) else template.jinja,
        compat=fields.compat,
        evaluations=evaluations,
        output=output,
        data=document.data,
    )


def parse_evaluations(document: Document) -> tuple[EvaluationSpec, ...]:
    """Give the evaluations of a recipe that may be wrong elsewhere, to be checked too."""
    data = document.data
    entries = data.get("evaluate") if isinstance(data, dict) else None
    specs = []
    for i, entry in enumerate(entries if isinstance(entries, list) else ()):
        try:
            fields = EvaluateFields.model_validate(entry)
        except ValidationError:
            continue
        place = document.where(("evaluate", i))
        name = fields.name or fields.use
        specs.append(EvaluationSpec(place, fields.use, name, fields.model_extra or {}))
    return tuple(specs)


def _check_secrets(document: Document, problems: Problems) -> None:
    """Refuse credentials: recipes are shared, and copied into what they make."""
    for path, value in _leaves(document.data, ()):
        if has_secret(f"{path[-1] if path else ''} {value}"):
            problems.add(
                document.where(path),
                "holds what looks like a secret token or key",
                "keep it in the environment, such as HF_TOKEN, and revoke it if it was shared",
            )


def _leaves(data: Any, path: FieldPath) -> Iterator[tuple[FieldPath, object]]:
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _leaves(value, (*path, key))
    else:
        yield path, data


def _evaluations(
    fields: RecipeFields, document: Document, problems: Problems
) -> tuple[EvaluationSpec, ...]:
    specs: list[EvaluationSpec] = []
    for i, entry in enumerate(fields.evaluate):
        name, place = entry.name or entry.use, document.where(("evaluate", i))
        if name in (spec.name for spec in specs):
            problems.add(place, f"two evaluations are named '{name}'", "give each its own `name`")
        specs.append(EvaluationSpec(place, entry.use, name, entry.model_extra or {}))
    if specs and fields.merge is not None and "merged" in fields.models:
        problems.add(
            document.where(("models", "merged")),
            "'merged' is the name of the result in tables of scores",
            "choose another label",
        )
    return tuple(specs)


def _check_nan_policy(fields: RecipeFields, document: Document, problems: Problems) -> None:
    """Refuse to keep a base's tensors in merges that have no base."""
    stages = fields.stages or {}
    merges = [fields.merge, *(stage.merge for stage in stages.values())]
    if fields.nan_policy == "base" and any(one is not None and one.base is None for one in merges):
        problems.add(
            document.where(("nan_policy",)),
            "nan_policy 'base' needs a merge that names a base",
            "name `base`, or say refuse or allow",
        )


def _output(fields: OutputFields, document: Document, problems: Problems) -> OutputSpec:
    path = fields.path and folder_path(fields.path, document, ("output", "path"), problems)
    return OutputSpec(path or None, fields.dtype, fields.max_shard_size, fields.config)
