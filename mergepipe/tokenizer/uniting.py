"""Vocabularies of several models -> the one of their merge, and whose row each token gets.

The result's tokens are those of one model, the *source*; a union appends what the others have,
in the order of the recipe and of ids. Tokens without a row in their model never enter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.errors import Problems, printable
from mergepipe.tokenizer.choice import RowSource, TokenizerChoice
from mergepipe.tokenizer.faults import place
from mergepipe.tokenizer.vocabulary import Key, Token, Vocabulary

__all__ = ["AddedToken", "ModelRows", "Union", "shown_tokens", "token_flags", "unite"]

Ids: TypeAlias = NDArray[np.int64]

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Of a token that no tokenizer defines: ordinary, and found as it is written.
_EXACT: Mapping[str, bool] = MappingProxyType(dict.fromkeys(_FLAGS, False))
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ModelRows:
    """A model's vocabulary, and how many rows it has.

    Tokens from `used` on have no row, or one that the configuration does not count.
    """

    vocabulary: Vocabulary
    used: int
    rows: int

    @property
    def label(self) -> str:
        """The model's label."""
        return self.vocabulary.label

    @property
    def tokens(self) -> Iterator[Token]:
        """The tokens that have a row, by id."""
        return (one for one in self.vocabulary.tokens.values() if one.id < self.used)


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that the source's tokenizer lacks: its new id and flags, and the model it is from."""

    id: int
    token: Token
    flags: Mapping[str, bool]
    label: str


@dataclass(frozen=True)
class Union:
    """One vocabulary, and where each model has its tokens.

    `own` gives a model's own id of the token with each id of the result; -1 where it has none, or
    nothing has that id. `explicit` are rows that the recipe names: id -> (label, row), None for
    zeros; `forced` ids take them in every model. Rows behind the last id are padding.
    """

    source: ModelRows
    models: Mapping[str, ModelRows]
    tokens: Mapping[int, str]
    added: tuple[AddedToken, ...]
    dropped: frozenset[int]  # ids of the source's tokens without a row
    own: Mapping[str, Ids]
    explicit: Mapping[int, tuple[str, int] | None]
    forced: frozenset[int]
    multiple: int
    base: str | None  # the model whose rows the others lack are taken first

    @property
    def count(self) -> int:
        """One more than the last id."""
        return max(self.tokens, default=-1) + 1

    @cached_property
    def rows(self) -> int:
        """Rows of the result: as before where all agree, else no more than are needed."""
        needed = -(-self.count // self.multiple) * self.multiple
        before = {model.rows for model in self.models.values()}
        if len(before) == 1 and self._same_ids:
            (rows,) = before
            return rows if self.multiple == 1 and rows >= needed else needed
        return needed

    @cached_property
    def is_identity(self) -> bool:
        """Whether every model has every token at the result's id, and as many rows."""
        return self._same_ids and all(one.rows == self.rows for one in self.models.values())

    @cached_property
    def _same_ids(self) -> bool:
        filled = self.filled
        same = all(np.array_equal(own[filled], filled) for own in self.own.values())
        return same and not self.forced

    @cached_property
    def filled(self) -> Ids:
        """Ids that a token has, ascending."""
        return np.fromiter(sorted(self.tokens), np.int64, len(self.tokens))

    def missing(self, label: str) -> Ids:
        """Give the tokens of the result that a model lacks."""
        found: Ids = self.filled[self.own[label][self.filled] < 0]
        return found

    def moved(self, label: str) -> Ids:
        """Give the tokens that have another id in a model."""
        own = self.own[label][self.filled]
        found: Ids = self.filled[(own >= 0) & (own != self.filled)]
        return found

    def lost(self, label: str) -> tuple[str, ...]:
        """Give the tokens of a model that are not in the result."""
        kept = set(self.own[label].tolist())
        return tuple(one.text for one in self.models[label].tokens if one.id not in kept)


def unite(
    choice: TokenizerChoice,
    models: Mapping[str, ModelRows],
    *,
    source: str,
    base: str | None,
    problems: Problems,
) -> Union:
    """Decide the vocabulary; faults go to `problems`.

    `models` are in recipe order; `source` is the one whose tokenizer is taken or extended.
    """
    ours = models[source]
    others = [model for label, model in models.items() if label != source]
    finders = {label: _Finder(model) for label, model in models.items()}
    entries = {one.id: (one, ours.vocabulary) for one in ours.tokens}
    flags = {label: token_flags(model.vocabulary) for label, model in models.items()}
    added: list[AddedToken] = []
    first = max(entries, default=-1) + 1

    def add(token: Token, model: ModelRows) -> None:
        number = first + len(added)
        stated = flags[model.label].get(token.text, _EXACT)
        added.append(AddedToken(number, token, stated, model.label))
        entries[number] = (token, model.vocabulary)

    if choice.source is None:
        for token, model in _ordinary(finders[source], others, choice, problems):
            add(token, model)
        for token, model in _special(finders[source], others):
            add(token, model)
    for token, model in _named(choice, models, {one.text for one, _ in entries.values()}, source):
        add(token, model)
    own = {label: _own(finder, entries) for label, finder in finders.items()}
    ids = {token.text: number for number, (token, _) in entries.items()}
    return Union(
        source=ours,
        models=models,
        tokens={number: token.text for number, (token, _) in entries.items()},
        added=tuple(added),
        dropped=frozenset(one for one in ours.vocabulary.tokens if one >= ours.used),
        own=own,
        explicit={
            ids[text]: _row((text, ids[text]), wish, models, own, problems)
            for text, wish in choice.tokens.items()
        },
        forced=frozenset(ids[text] for text, wish in choice.tokens.items() if wish.force),
        multiple=choice.multiple,
        base=base,
    )


class _Finder:
    """Finds tokens of others in one model: added ones by content, ordinary ones by bytes."""

    def __init__(self, model: ModelRows) -> None:
        self.model = model
        self.texts = {one.text: one.id for one in model.tokens}
        self.keys: dict[Key, int] = {}
        for one in model.tokens:
            if one.kind != "special":
                self.keys.setdefault(one.key, one.id)

    def find(self, token: Token, origin: Vocabulary) -> int:
        """Give the id of the same token, or -1."""
        if origin is self.model.vocabulary:
            return token.id
        if token.is_added or origin.family == self.model.vocabulary.family:
            found = self.texts.get(token.text, -1)
            if found >= 0 or token.kind == "special":
                return found
        return self.keys.get(token.key, -1)


def _own(finder: _Finder, entries: Mapping[int, tuple[Token, Vocabulary]]) -> Ids:
    found = np.full(max(entries, default=-1) + 1, -1, np.int64)
    for number, (token, origin) in entries.items():
        found[number] = finder.find(token, origin)
    return found


def _ordinary(
    ours: _Finder, others: Sequence[ModelRows], choice: TokenizerChoice, problems: Problems
) -> list[tuple[Token, ModelRows]]:
    """Give the ordinary tokens that the source lacks, each once; that there are any is a fault."""
    found: dict[Key, tuple[Token, ModelRows]] = {}
    for model in others:
        lacking = [
            one for one in model.tokens if not one.is_added and ours.find(one, model.vocabulary) < 0
        ]
        if not lacking:
            continue
        where = place(model.vocabulary.folder, model.label)
        shown = shown_tokens(one.text for one in lacking)
        what = f"{len(lacking)} ordinary tokens are not in {ours.model.label}'s vocabulary: {shown}"
        if choice.allow_ordinary_union:
            problems.warn(where, f"{what}; as added tokens they cut words, and both models suffer")
        else:
            fix = "transplant its tokenizer first; `allow_ordinary_union: true` adds them anyway"
            problems.add(where, f"{what}; as added tokens they would cut words", fix)
        for one in lacking:
            found.setdefault(one.key, (one, model))
    return list(found.values())


def _special(ours: _Finder, others: Sequence[ModelRows]) -> Iterator[tuple[Token, ModelRows]]:
    """Give the added tokens that the source lacks, each as the first model defines it."""
    seen: set[str] = set()
    for model in others:
        for one in model.tokens:
            is_new = one.is_added and ours.find(one, model.vocabulary) < 0
            if is_new and one.text not in seen:
                seen.add(one.text)
                yield one, model


def _named(
    choice: TokenizerChoice, models: Mapping[str, ModelRows], known: set[str], source: str
) -> Iterator[tuple[Token, ModelRows]]:
    """Give the tokens that only the recipe names, as the model has them whose row they take."""
    for text, wish in choice.tokens.items():
        if text not in known:
            model = models[wish.take or source]
            number = model.vocabulary.ids.get(text, model.used)
            new = Token(-1, text, "piece", text.encode(errors="surrogatepass"), is_added=True)
            yield (model.vocabulary.tokens[number] if number < model.used else new), model


def _row(
    token: tuple[str, int],
    wish: RowSource,
    models: Mapping[str, ModelRows],
    own: Mapping[str, Ids],
    problems: Problems,
) -> tuple[str, int] | None:
    """Find the row that the recipe names for a token."""
    if wish.take is None:
        return None
    model, (text, number) = models[wish.take], token
    if wish.id is not None:
        row, what = wish.id, f"{wish.take} has {model.rows} rows, none for id {wish.id}"
    elif wish.token is not None:
        row = model.vocabulary.ids.get(wish.token, -1)
        what = f"{wish.take} has no token {printable(wish.token, 80)} with a row"
    else:
        row = int(own[wish.take][number])
        what = f"{wish.take} has no token {printable(text, 80)}; name its `token` or `id` there"
    if not 0 <= row < model.rows:
        problems.add(wish.place, what)
    return wish.take, row


def token_flags(vocabulary: Vocabulary) -> dict[str, Mapping[str, bool]]:
    """Give the flags of a tokenizer's added tokens by their content."""
    listed: Sequence[Mapping[str, Any]] = vocabulary.stored.get("added_tokens") or ()
    return {one["content"]: {flag: bool(one.get(flag, False)) for flag in _FLAGS} for one in listed}


def shown_tokens(texts: Iterator[str] | Sequence[str]) -> str:
    """`a, b, c ...`: a few, escaped."""
    listed = list(texts)
    more = ", ..." if len(listed) > _SHOWN else ""
    return ", ".join(printable(text, 40) for text in listed[:_SHOWN]) + more
