"""Whether the models' vocabularies agree: rows of embeddings are averaged by id, not by word."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from mergepipe.checkpoint import Checkpoint
from mergepipe.errors import InputError, Problems, printable
from mergepipe.tokenizer.compare import Comparison, Moved, compare
from mergepipe.tokenizer.faults import place
from mergepipe.tokenizer.reading import (
    Entries,
    read_entries,
    tokenizer_file,
    vocabulary_of,
    with_settings_of,
)
from mergepipe.tokenizer.roles import check_roles
from mergepipe.tokenizer.vocabulary import Vocabulary

__all__ = ["check_rows", "check_tokenizers"]

_SHOWN = 3
# A few tokens more than rows are met with: Gemma 3's text models lack the image token's row.
_SPARE = 3


def check_tokenizers(
    donor: Checkpoint, mixed: Collection[Checkpoint], rows: int, problems: Problems
) -> None:
    """Hold the vocabularies of `mixed` against that of `donor`, with which they are averaged.

    `rows` is how many rows the embedding has. A model without a tokenizer is passed over. Added
    tokens that only one side has, and reserved tokens that got a name, are warned of, as are
    ends of text that differ; tokens with other ids are refused.
    """
    digest = _digest(donor)
    others = {model.label: (model, _digest(model)) for model in mixed}
    if digest is None or not any(one for _, one in others.values()):
        return
    is_same = {one for _, one in others.values()} <= {digest, None}
    # What is the same everywhere is not averaged wrongly, whatever it is.
    ours = _read(donor, rows, Problems() if is_same else problems)
    if ours is None:
        return
    check_roles(ours, None, problems)
    for model, other in others.values():
        if other == digest:
            check_roles(with_settings_of(ours, model.tokenizer_folder, model.label), ours, problems)
            continue
        theirs = None if other is None else _read(model, rows, problems)
        if theirs is not None:
            _judge(ours, theirs, problems)
            check_roles(theirs, ours, problems)


def check_rows(model: Entries | Vocabulary, rows: int, problems: Problems) -> bool:
    """Tell whether an embedding of `rows` rows can be that of a tokenizer; say why it cannot."""
    count, last = len(set(model.ids.values())), max(model.ids.values(), default=0)
    if last < rows or (last < count <= rows + _SPARE):
        return True
    what = f"{count} tokens up to id {last}, but the embedding has {rows} rows"
    problems.add(_place(model), what, "fetch the tokenizer of this model again")
    return False


def _digest(model: Checkpoint) -> bytes | None:
    file = None if model.is_bare else tokenizer_file(model.tokenizer_folder)
    try:
        return hashlib.blake2b(file.read_bytes()).digest() if file else None
    except OSError:
        return None


def _read(
    model: Checkpoint, rows: int, problems: Problems, same: Entries | None = None
) -> Entries | None:
    """Read the vocabulary of a model, or say what is wrong with its files.

    `same` is another model's of the same bytes, which then are not parsed again.
    """
    try:
        if same is not None:
            return with_settings_of(same, model.folder, model.label)
        found = read_entries(model.folder, model.label)
    except InputError as error:
        for problem in error.problems:
            problems.add(problem.where, problem.what, problem.fix)
        return None
    return found if check_rows(found, rows, problems) else None


def _place(model: Entries | Vocabulary) -> str:
    file = tokenizer_file(model.folder)
    return place(model.folder, model.label, file.name if file else "")


def _judge(ours: Entries, theirs: Entries, problems: Problems) -> None:
    """Refuse moved tokens; warn of what only one of the two vocabularies has."""
    where, label = _place(theirs), ours.label
    here, there = (_by_id(one) for one in (ours, theirs))
    moved = [n for n, token in here.items() if there.get(n, token) != token]
    renamed = [
        n for n in moved if _is_own(here[n], ours, theirs) and _is_own(there[n], theirs, ours)
    ]
    if len(moved) > len(renamed):
        found = compare(vocabulary_of(ours), vocabulary_of(theirs))
        if len(found.moved) > len(found.renamed):
            what = (
                f"tokenizer differs from {label}'s: {len(found.moved)} of {len(here)} tokens have "
                f"another id ({_shown_moves(found.moved)}); a row-by-row average would mix words"
            )
            problems.add(where, what, _way_out(found))
            return
        renamed = [one.id for one in found.renamed]
    for what, tokens in (
        (f"tokens have another name than in {label}", [there[n] for n in renamed]),
        (f"tokens that {label} lacks", [there[n] for n in there.keys() - here.keys()]),
        (f"tokens of {label} are missing", [here[n] for n in here.keys() - there.keys()]),
    ):
        if tokens:
            shown = ", ".join(sorted(tokens)[:_SHOWN])
            problems.warn(where, f"{len(tokens)} {what}: {printable(shown, 200)}")
    kinds = [one.stored["model"].get("type") for one in (ours, theirs)]
    if kinds[0] != kinds[1]:
        problems.warn(where, f"is a {kinds[1]} tokenizer, {label}'s is {kinds[0]}")


def _by_id(model: Entries) -> dict[int, str]:
    return {number: token for token, number in model.ids.items()}


def _is_own(token: str, model: Entries, other: Entries) -> bool:
    """Tell an added token that only this model has: a reserved one, or the name it was given."""
    return token in model.added and token not in other.ids


# How ordinary tokens differ -> what in the recipe would settle it.
_MATCHED = "the words are the same: `tokenizer: union` or `tokenizer: {0}` matches rows by token"
_WAYS: Mapping[str, str] = MappingProxyType(
    {
        "same": _MATCHED,
        "padded": _MATCHED,
        "permuted": _MATCHED,
        "subset": "align them: `tokenizer: {0}` matches rows by token",
        "superset": "align them: `tokenizer: {0}` matches rows by token and drops what it lacks",
        "different": "they share {2:.0%} of {0}'s tokens: first give {1} the tokenizer of {0} in a "
        "`transplant` stage, and merge that: `stages: {{moved: {{transplant: {{model: {1}, "
        "tokenizer: {0}}}}}, merged: {{merge: {{...}}}}}}`",
    }
)


def _way_out(found: Comparison) -> str:
    base = found.a.label
    share = len(found.shared) / len(found.a)
    way = _WAYS[found.ordinary].format(base, found.b.label, share)
    return f"{way}; or `take` the embedding and the output head from {base}"


def _shown_moves(moved: Iterable[Moved]) -> str:
    shown = [f"{one.id} is {one.here.text}, here {one.there.text}" for one in moved]
    return printable(", ".join(shown[:_SHOWN]), 200)
