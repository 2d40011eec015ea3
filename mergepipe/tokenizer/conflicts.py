"""What users should know of vocabularies that are united: flags, roles, rules, templates differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mergepipe.errors import Problems, printable
from mergepipe.tokenizer.faults import place
from mergepipe.tokenizer.roles import check_roles
from mergepipe.tokenizer.uniting import Union, shown_tokens, token_flags
from mergepipe.tokenizer.vocabulary import Vocabulary

__all__ = ["check_union"]

_RULES = ("normalizer", "pre_tokenizer")


def check_union(union: Union, problems: Problems, *, templates: bool) -> None:
    """Warn of everything in which the models' tokenizers differ from the result's.

    With `templates`, of chat templates too: the recipe names none.
    """
    source = union.source.vocabulary
    check_roles(source, None, problems)
    for label, model in union.models.items():
        theirs = model.vocabulary
        if label == union.source.label:
            continue
        where = place(theirs.folder, label)
        check_roles(theirs, source, problems)
        for what in (*_tokens(union, label), *_flags(union, theirs), *_rules(source, theirs)):
            problems.warn(where, what)
        if templates:
            for what in _templates(source, theirs):
                problems.warn(where, what)
    _check_rows(union, problems)


def _tokens(union: Union, label: str) -> Iterator[str]:
    lost = union.lost(label)
    if lost:
        what = f"{len(lost)} tokens are not in the result's vocabulary"
        yield f"{what}: {shown_tokens(lost)}"
    texts = [union.tokens[int(one)] for one in union.missing(label)]
    added = {one.token.text for one in union.added}
    lacking = [text for text in texts if text not in added]
    if lacking:
        yield f"{len(lacking)} tokens of {union.source.label} are missing: {shown_tokens(lacking)}"


def _flags(union: Union, theirs: Vocabulary) -> Iterator[str]:
    """Say which added tokens have other flags than in the result."""
    ours = token_flags(union.source.vocabulary)
    ours |= {one.token.text: one.flags for one in union.added}
    other = [text for text, flags in token_flags(theirs).items() if flags != ours.get(text, flags)]
    if other:
        what = f"{len(other)} added tokens have other settings than in the result"
        yield f"{what}: {shown_tokens(other)}"


def _rules(ours: Vocabulary, theirs: Vocabulary) -> Iterator[str]:
    other = [part for part in _RULES if ours.stored.get(part) != theirs.stored.get(part)]
    if ours.model != theirs.model:
        other.append(f"model: {theirs.model}, there {ours.model}")
    elif _merges(ours.stored["model"]) != _merges(theirs.stored["model"]):
        other.append("merges")
    if other:
        yield f"splits text by other rules than {ours.label}'s tokenizer: {', '.join(other)}"


def _merges(model: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Give merges as pairs, however they are written."""
    listed = model.get("merges") or ()
    return [tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one) for one in listed]


def _templates(ours: Vocabulary, theirs: Vocabulary) -> Iterator[str]:
    here, there = _template(ours), _template(theirs)
    if there is None or there == here:
        return
    has = "another chat template than" if here is not None else "a chat template, unlike"
    name = printable(theirs.label, 80)
    yield f"has {has} {ours.label}; `chat_template: {name}` gives it to the result"


def _template(model: Vocabulary) -> str | None:
    file = model.folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace").strip()
    stated = model.settings.get("chat_template")
    return json.dumps(stated) if isinstance(stated, list) else stated.strip() if stated else None


def _check_rows(union: Union, problems: Problems) -> None:
    where = place(union.source.vocabulary.folder, union.source.label)
    if union.dropped:
        texts = [union.source.vocabulary.tokens[one].text for one in sorted(union.dropped)]
        what = f"{len(texts)} tokens have no row and are left out: {shown_tokens(texts)}"
        problems.warn(where, what)
    alone = [
        union.tokens[number]
        for number in union.filled.tolist()
        if number not in union.explicit and all(own[number] < 0 for own in union.own.values())
    ]
    if alone:
        what = f"{len(alone)} tokens are in no model and get rows of zeros: {shown_tokens(alone)}"
        problems.warn(where, what)
