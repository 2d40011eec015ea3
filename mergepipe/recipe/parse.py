"""Document -> Recipe: every name resolved, every parameter checked against its method."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from mergepipe.errors import Problems, has_secret
from mergepipe.evaluate import Split
from mergepipe.recipe.beside import read_beside, read_retention
from mergepipe.recipe.document import Document, FieldPath
from mergepipe.recipe.fields import EvaluateFields, OutputFields, RecipeFields
from mergepipe.recipe.merges import MergeReader
from mergepipe.recipe.publish import PublishFields, PublishSpec
from mergepipe.recipe.reading import read_fields
from mergepipe.recipe.search import read_search
from mergepipe.recipe.sources import folder_path, read_sources
from mergepipe.recipe.spec import EvaluationSpec, OutputSpec, Recipe
from mergepipe.recipe.tokenizers import read_tokenizer
from mergepipe.recipe.transplants import read_transplants, transplant_result

__all__ = ["evaluation_spec", "parse", "parse_evaluations"]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")  # `hf:`, `s3:`; a target without one is a folder
_FILE = "gguf:"  # and a path


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
    transplants = read_transplants(fields, reader)
    merges = reader.merges({name: transplant_result(one) for name, one in transplants.items()})
    tokenizer = read_tokenizer(fields.tokenizer, reader)
    template = fields.chat_template
    if isinstance(template, str):
        reader.check_label(template, ("chat_template",))
    reader.check_label(fields.output.config, ("output", "config"))
    sources = read_sources(fields.models, document, problems)
    evaluations = _evaluations(fields, document, problems)
    names = [one.name for one in evaluations]
    compares = fields.compare is not None
    search = read_search(fields.search, names, document, problems, compares=compares)
    taken = {*fields.models, *merges, "merged"}
    beside = read_beside(fields.beside, taken, names, document, problems)
    scored = {*fields.models, *beside}
    retention = read_retention(fields.retention, scored, names, document, problems)
    output = _output(fields.output, document, problems)
    publish = _publish(fields.publish, document, problems)
    _check_nan_policy(fields, document, problems)
    if not whole:
        return None
    return Recipe(
        file=document.file,
        sources=sources,
        merges=merges,
        compares=compares,
        seed=fields.seed,
        nan_policy=fields.nan_policy,
        tokenizer=tokenizer,
        chat_template=template if isinstance(template, str) else None,
        jinja=None if isinstance(template, str | None) else template.jinja,
        compat=fields.compat,
        evaluations=evaluations,
        output=output,
        data=document.data,
        transplants=transplants,
        search=search,
        beside=beside,
        retention=retention,
        publish=publish,
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
        specs.append(evaluation_spec(fields, document.where(("evaluate", i))))
    return tuple(specs)


def evaluation_spec(fields: EvaluateFields, place: str) -> EvaluationSpec:
    """Give an entry of `evaluate:` that stands at `place`."""
    split = fields.split
    return EvaluationSpec(
        place=place,
        use=fields.use,
        name=fields.name or fields.use,
        parameters=fields.model_extra or {},
        limit=fields.limit,
        split=None if split is None else Split(split.search, split.holdout, split.seed),
        max_error_rate=fields.max_error_rate,
    )


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
        found = evaluation_spec(entry, document.where(("evaluate", i)))
        if found.name in (spec.name for spec in specs):
            what = f"two evaluations are named '{found.name}'"
            problems.add(found.place, what, "give each its own `name`")
        specs.append(found)
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


def _publish(
    fields: PublishFields | None, document: Document, problems: Problems
) -> PublishSpec | None:
    if fields is None:
        return None
    targets: list[str] = []
    for i, text in enumerate(fields.to):
        path: FieldPath = ("publish", "to", i)
        target = _target(text, path, document, problems) if text else ""
        if not text:
            problems.add(document.where(path), "empty", "give a target, or leave it out")
        elif target in targets:
            problems.add(document.where(path), "the same target twice", "list it once")
        targets.append(target)
    return PublishSpec(fields.card, tuple(targets), fields.strict)


def _target(text: str, path: FieldPath, document: Document, problems: Problems) -> str:
    """Give a target, its path relative to the recipe's folder if it has one."""
    if not _SCHEME.match(text):
        return str(folder_path(text, document, path, problems) or "")
    if text.startswith(_FILE):
        file, mark, options = text.removeprefix(_FILE).partition("?")
        return f"{_FILE}{folder_path(file, document, path, problems)}{mark}{options}"
    return text
