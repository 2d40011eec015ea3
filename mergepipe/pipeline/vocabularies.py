"""The vocabulary that a recipe asks for, and its models aligned with it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mergepipe.checkpoint import Checkpoint, embedding_name
from mergepipe.errors import InputError, Problems
from mergepipe.recipe import Recipe
from mergepipe.tokenizer import (
    ModelRows,
    ResultTokenizer,
    TokenizerChoice,
    Union,
    Vocabulary,
    align_checkpoints,
    check_union,
    read_vocabulary,
    result_tokenizer,
    tokenizer_file,
    unite,
    vocabulary_size,
)
from mergepipe.write import tokenizer_files

__all__ = ["United", "origin_label", "unite_models"]

_MOST_BEYOND = 256  # tokens without a row


@dataclass(frozen=True, slots=True)
class United:
    """What `tokenizer:` comes to: `checkpoints` have the result's rows."""

    union: Union
    tokenizer: ResultTokenizer | None  # None: the files of the source, and no id changes
    checkpoints: Mapping[str, Checkpoint]

    @property
    def is_as_before(self) -> bool:
        """Whether the vocabularies agree, so that nothing was aligned and nothing is left out."""
        models = self.union.models.values()
        whole = all(model.vocabulary.rows <= model.used for model in models)
        return self.union.is_identity and whole


def unite_models(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], problems: Problems
) -> United | None:
    """Decide the vocabulary of a recipe that asks for one, and align its models with it.

    None where it asks for none, or the models have no embedding, or there are faults: they go to
    `problems`.
    """
    choice, before = recipe.tokenizer, len(problems.found)
    if choice is None or any(one.is_bare for one in checkpoints.values()):
        return None
    donor = origin_label(recipe, next(iter(recipe.merges.values())).donor)
    spec = recipe.merges[recipe.result]
    asked = choice.source or (donor if recipe.compares else spec.donor)
    source = origin_label(recipe, asked)
    tables = {label: embedding_name(one.tensors) for label, one in checkpoints.items()}
    if not all(tables.values()):
        return None
    models = _models(choice, source, checkpoints, problems)
    if len(problems.found) > before:
        return None
    base = None if spec.base is None else origin_label(recipe, spec.base)
    union = unite(choice, models, source=source, base=base, problems=problems)
    if len(problems.found) > before:
        return None
    check_union(union, problems, templates=recipe.chat_template is None and recipe.jinja is None)
    like = recipe.output.config or origin_label(recipe, spec.donor)
    plain = union.is_identity and not union.dropped
    made = None
    if not (plain and like == source):
        files = tokenizer_files(checkpoints[source].folder)
        made = result_tokenizer(union, files, models[like].vocabulary, problems)
    aligned = checkpoints
    if not union.is_identity:
        taken = set(_taken(recipe, checkpoints))
        aligned = align_checkpoints(checkpoints, union, problems, taken=taken)
    return United(union, made, aligned)


def origin_label(recipe: Recipe, label: str) -> str:
    """Follow a stage back to the model whose configuration and tokenizer it has."""
    while label in recipe.merges:
        label = recipe.merges[label].donor
    return label


def _models(
    choice: TokenizerChoice,
    source: str,
    checkpoints: Mapping[str, Checkpoint],
    problems: Problems,
) -> dict[str, ModelRows]:
    found: dict[str, ModelRows] = {}
    assumed = []
    for label, checkpoint in checkpoints.items():
        lacks = tokenizer_file(checkpoint.folder) is None
        if lacks and choice.source is not None and label != source:
            assumed.append(label)
            continue
        try:
            vocabulary = read_vocabulary(checkpoint.folder, label)
        except InputError as error:
            problems.found.extend(error.problems)
            continue
        found[label] = _rows(vocabulary, checkpoint)
        _check_fit(found[label], problems)
    for label in assumed if source in found else ():
        found[label] = _assumed(found[source], checkpoints[label], problems)
    return {label: found[label] for label in checkpoints if label in found}


def _rows(vocabulary: Vocabulary, checkpoint: Checkpoint) -> ModelRows:
    embedding = embedding_name(checkpoint.tensors)
    assert embedding is not None, "models without one are not united"
    rows = checkpoint.tensors[embedding].shape[0]
    return ModelRows(vocabulary, min(rows, vocabulary_size(checkpoint.config) or rows), rows)


def _check_fit(model: ModelRows, problems: Problems) -> None:
    """Refuse a tokenizer that is another model's; a few tokens without a row are met with."""
    vocabulary = model.vocabulary
    last, count = vocabulary.rows - 1, len(vocabulary)
    beyond = sum(number >= model.used for number in vocabulary.tokens)
    if beyond and (last >= count or beyond > _MOST_BEYOND):
        file = (tokenizer_file(vocabulary.folder) or vocabulary.folder).name
        what = f"{count} tokens up to id {last}, but the embedding has {model.rows} rows"
        problems.add(f"{model.label} ({file})", what, "fetch the tokenizer of this model again")


def _assumed(source: ModelRows, checkpoint: Checkpoint, problems: Problems) -> ModelRows:
    """Take a model without a tokenizer to have the source's, if it has as many rows."""
    found = _rows(replace(source.vocabulary, label=checkpoint.label), checkpoint)
    if found.rows != source.rows:
        what = f"has no tokenizer, and {found.rows} rows, where {source.label} has {source.rows}"
        problems.add(checkpoint.label, what, "put its tokenizer into its folder")
    return found


def _taken(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
    """Give the tensors that a rule takes from one model."""
    rules = [rule for spec in recipe.merges.values() for rule in spec.rules if rule.take]
    globs = [glob for rule in rules for glob in rule.globs]
    for checkpoint in checkpoints.values():
        for name in checkpoint.tensors:
            if any(fnmatch.fnmatchcase(name, glob) for glob in globs):
                yield name
